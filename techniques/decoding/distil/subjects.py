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

HELD_OUT = 16
"""One subject in so many is kept from training."""


def held_out(subject: str) -> bool:
    """Whether texts about this subject measure the draft instead of training it."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "little") % HELD_OUT == 0
