"""Words that the training prompts are made of, and which subjects are kept from training."""

from __future__ import annotations

import hashlib


def _listed(text: str) -> tuple[str, ...]:
    """The phrases between semicolons."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(";"))


SUBJECTS = _listed(
    """
    bread baking; beekeeping; bicycle repair; birdwatching; black holes; blood circulation; board games; book clubs;
    bridge building; budgeting; butterflies; camping; candle making; car maintenance; castles; chess openings;
    childhood memories; choir singing; cinema history; city parks; climbing; clocks; cloud computing; coastal
    erosion; coffee; comets; composting; contract law; coral reefs; cotton farming; country dancing; crossword
    puzzles; customer service; cycling holidays; databases; deserts; desk lamps; digital cameras; dinosaurs; dog
    training; drawing portraits; drought; earthquakes; eclipses; electric cars; electric circuits; elections;
    elephants; emergency rooms; encryption; evolution; fairy tales; family recipes; fermentation; film editing; fire
    safety; first aid; fishing boats; flower arranging; folk music; football tactics; forest fires; fossils;
    fractions; freelance writing; friction; fundraising; furniture making; galaxies; gardening; genetics; glaciers;
    glass blowing; grammar; gravity; greenhouses; guitar practice; handwriting; harbours; healthy breakfasts; hiking
    boots; home insulation; honey; horse riding; hospital waiting times; hot air balloons; houseplants; human
    memory; humour at work; hurricanes; ice cream; immune systems; inflation; insects; internet routers;
    interviewing; islands; jazz; job applications; juggling; kites; kitchen knives; knitting; lakes; language
    learning; laser light; learning to swim; leather shoes; libraries; lighthouses; lightning; local history; long
    train journeys; magnets; malaria; map reading; marathon running; marine biology; market stalls; mathematics
    teaching; meditation; metal recycling; meteor showers; microscopes; migration of birds; mobile phones; mountain
    rescue; moving house; museums; mushrooms; music theory; mythology; negotiation; neural networks; night shifts;
    noise pollution; novels; nuclear power; nursing; nutrition; ocean currents; office plants; olive oil; online
    shopping; opera; orchards; origami; owls; painting walls; paper making; parenting; pendulums; penguins; pension
    plans; perfume; photosynthesis; piano lessons; pirates; planets; plastic waste; poetry; polar bears; pottery;
    prime numbers; probability; programming in C; project planning; proverbs; public speaking; public transport;
    quilting; rabbits; radio; rain forests; rainbows; reading aloud; refrigerators; renting a flat; rice cooking;
    rivers; road safety; robots; rocket engines; roller skating; roman roads; rope knots; rose growing; rowing;
    rubber; sailing; salt; satellites; school lunches; science fiction; sculpture; search engines; seasons; seeds;
    sewing; sharks; shipping containers; shyness; singing; sleep; slow cooking; small talk; snow; soap; soil; solar
    panels; sorting algorithms; soup; space stations; spiders; spreadsheets; stage fright; steam engines;
    storytelling; street food; stress; submarines; sugar; sundials; surveys; swimming pools; tailoring; tea; team
    meetings; teeth; telescopes; tennis; theatre; thunderstorms; tides; time zones; tomatoes; town planning; toys;
    translation; travel insurance; treaties; trees; tunnels; turtles; typography; umbrellas; unit testing;
    universities; vaccines; vegetable soup; video games; village fairs; violins; volcanoes; volleyball;
    volunteering; walking in cities; wasps; watchmaking; water filters; waterfalls; weather forecasts; weaving;
    wedding speeches; whales; wild flowers; wind turbines; windows; wine; winter; wolves; wood carving; working from
    home; writing letters; yoga; zoology
    """
)
PEOPLE = _listed(
    """
    Ada; Bruno; Carla; Deniz; Elif; Farid; Greta; Hugo; Ines; Jonas; Kemal; Lena; Mira; Noah; Olga; Pavel; Rosa;
    Tariq
    """
)
WORKERS = _listed(
    """
    teacher; nurse; farmer; baker; student; driver; doctor; lawyer; painter; singer; cook; engineer; pilot; judge
    """
)
THINGS = _listed(
    """
    apples; pencils; bottles; tickets; stamps; books; candles; marbles; tiles; cakes; ropes; lamps; plates; roses
    """
)
PLACES = _listed(
    """
    the station; the old market; our school; the library; the harbour; a small village; the museum; the hospital;
    the park; my office; the airport; the castle; the river; the kitchen; the theatre; the bakery
    """
)
ACTIONS = _listed(
    """
    lost a key; bought a map; met an old friend; waited for two hours; found a letter; sold the car; drank cold tea;
    read the newspaper; repaired a clock; sang a song; forgot the umbrella; painted the door; wrote to the mayor;
    planted three trees; heard the news; missed the last bus; cooked for everyone; took a photograph
    """
)
WHEN = _listed(
    """
    yesterday; last summer; every Monday; in the morning; before the rain; after the war; at night; during the
    holidays; on Sunday; a year ago; in March; without a word
    """
)
LANGUAGES = _listed(
    """
    German; French; Spanish; Italian; Portuguese; Dutch; Turkish; Polish
    """
)

NOUNS = _listed(
    """
    a barometer; a beaver; a biscuit tin; a bridge toll; a bus lane; a canal lock; a candle; a census; a coin; a comma;
    a compost heap; a crane; a cuckoo; a dam; a diesel engine; a dictionary; a dishwasher; a diving bell; a fax machine;
    a fern; a fever; a flute; a footnote; a fuse; a gearbox; a gecko; a geyser; a glacier; a glossary; a hammer; a harp;
    a hedgehog; a helicopter; a heron; a hinge; a jury; a kidney; a ladder; a lens; a lever; a lever arch file; a loom;
    a magnet; a metronome; a mirror; a monsoon; a mortgage; a mosquito; a nettle; a notary; a parachute; a passport; a
    peninsula; a piston; a plough; a pulley; a pump; a receipt; a recipe; a referee; a reservoir; a salmon; a scarecrow;
    a screw; a seismograph; a semicolon; a sieve; a smoke alarm; a sponge; a stapler; a stethoscope; a subscription; a
    tadpole; a telegram; a thermostat; a toolbox; a tractor; a transistor; a tuning fork; a valley; a valve; a violin
    bow; a volcano; a wheelbarrow; a windmill; a zip; an abacus; an acorn; an alphabet; an anchor; an artery; an atlas;
    an auction; an avalanche; an eclipse; an engine; an estuary; an eyelid; an hourglass; an iceberg; an insurance
    policy; an octopus; an onion; an orchestra; an oven; an owl; the Arctic; the Baltic Sea; the Middle Ages; the
    Moon; the Nile; the Pacific; the Roman Empire; the Sahara; the equator; the heart of a fish; the human ear; the
    human eye; the liver; the lungs; the milky way; the periodic table; the printing press; the skin; the stomach; the
    tides; the water cycle
    """
)
FOREIGN = {
    "German": (
        _listed(
            """
            Meine Schwester; Unser Nachbar; Der alte Lehrer; Die Köchin; Ein junger Mann; Das Kind; Mein Onkel; Die
            Ärztin; Der Gärtner; Frau Keller
            """
        ),
        _listed(
            """
            kauft frisches Brot; wartet auf den Bus; liest ein langes Buch; repariert das Fahrrad; schreibt einen Brief;
            sucht den Schlüssel; trinkt eine Tasse Tee; malt die Tür blau; lernt ein neues Lied; pflanzt drei Bäume;
            verkauft das kleine Haus; hat den Regenschirm vergessen
            """
        ),
        _listed(
            """
            am Bahnhof; im Garten; jeden Morgen; seit zwei Wochen; in der Küche; nach der Arbeit; am Wochenende; im
            Sommer
            """
        ),
    ),
    "French": (
        _listed(
            """
            Ma sœur; Notre voisin; Le vieux professeur; La cuisinière; Un jeune homme; Mon oncle; Le jardinier; Madame
            Morel; Le facteur; Mon amie
            """
        ),
        _listed(
            """
            achète du pain frais; attend le bus; lit un long livre; répare le vélo; écrit une lettre; cherche la clé;
            boit une tasse de thé; peint la porte en bleu; apprend une nouvelle chanson; plante trois arbres; vend la
            petite maison; a oublié le parapluie
            """
        ),
        _listed(
            """
            à la gare; dans le jardin; chaque matin; depuis deux semaines; dans la cuisine; après le travail; le
            samedi; en été
            """
        ),
    ),
    "Spanish": (
        _listed(
            """
            Mi hermana; Nuestro vecino; El viejo profesor; La cocinera; Un joven; Mi tío; El jardinero; La señora Ruiz;
            El cartero; Mi amiga
            """
        ),
        _listed(
            """
            compra pan fresco; espera el autobús; lee un libro largo; repara la bicicleta; escribe una carta; busca la
            llave; bebe una taza de té; pinta la puerta de azul; aprende una canción nueva; planta tres árboles; vende
            la casa pequeña; ha olvidado el paraguas
            """
        ),
        _listed(
            """
            en la estación; en el jardín; cada mañana; desde hace dos semanas; en la cocina; después del trabajo; los
            sábados; en verano
            """
        ),
    ),
    "Italian": (
        _listed(
            """
            Mia sorella; Il nostro vicino; Il vecchio maestro; La cuoca; Un giovane; Mio zio; Il giardiniere; La signora
            Conti; Il postino; La mia amica
            """
        ),
        _listed(
            """
            compra il pane fresco; aspetta l'autobus; legge un lungo libro; ripara la bicicletta; scrive una lettera;
            cerca la chiave; beve una tazza di tè; dipinge la porta di blu; impara una nuova canzone; pianta tre
            alberi; vende la piccola casa; ha dimenticato l'ombrello
            """
        ),
        _listed(
            """
            alla stazione; nel giardino; ogni mattina; da due settimane; in cucina; dopo il lavoro; il sabato; in
            estate
            """
        ),
    ),
}
"""Language -> who does what, and when or where."""

HELD_OUT = 16
"""One subject in so many is kept from training."""


def held_out(subject: str) -> bool:
    """Whether texts about this subject measure the draft instead of training it."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "little") % HELD_OUT == 0
