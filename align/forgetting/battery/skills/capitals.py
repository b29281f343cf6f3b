"""Capitals of countries. Left out: capitals that moved, were renamed or are disputed, and those that the country's name
gives away."""

from __future__ import annotations

from random import Random

from align.forgetting.battery.choices import parse_pairs, with_wrong_choices
from align.forgetting.battery.skill import Item, Skill, user

# Groups of about equally well-known capitals: the wrong choices come from the same group.
WELL_KNOWN = """
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; the United Kingdom: London
Ireland: Dublin; Greece: Athens; Russia: Moscow; China: Beijing; Japan: Tokyo; Austria: Vienna; Poland: Warsaw
Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen; Finland: Helsinki; Belgium: Brussels; Hungary: Budapest
the Netherlands: Amsterdam; Turkey: Ankara; Canada: Ottawa; Australia: Canberra; Cuba: Havana; Peru: Lima
Chile: Santiago; Kenya: Nairobi; South Korea: Seoul; Thailand: Bangkok; Switzerland: Bern; the Czech Republic: Prague
Iceland: Reykjavik; New Zealand: Wellington; Iran: Tehran; Iraq: Baghdad; Vietnam: Hanoi; the Philippines: Manila
"""

KNOWN = """
Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Slovakia: Bratislava; Slovenia: Ljubljana
Estonia: Tallinn; Latvia: Riga; Lithuania: Vilnius; Belarus: Minsk; Albania: Tirana; Cyprus: Nicosia; Malta: Valletta
Bosnia and Herzegovina: Sarajevo; North Macedonia: Skopje; Syria: Damascus; Lebanon: Beirut; Jordan: Amman
Saudi Arabia: Riyadh; Qatar: Doha; Oman: Muscat; Pakistan: Islamabad; Bangladesh: Dhaka; Nepal: Kathmandu
Afghanistan: Kabul; North Korea: Pyongyang; Mongolia: Ulaanbaatar; Morocco: Rabat; Libya: Tripoli; Sudan: Khartoum
Uganda: Kampala; Ghana: Accra; Senegal: Dakar; Nigeria: Abuja; Zimbabwe: Harare; Zambia: Lusaka; Angola: Luanda
Somalia: Mogadishu; Venezuela: Caracas; Colombia: Bogota; Ecuador: Quito; Uruguay: Montevideo; Paraguay: Asuncion
Jamaica: Kingston; the Bahamas: Nassau; Honduras: Tegucigalpa; Nicaragua: Managua; Armenia: Yerevan; Azerbaijan: Baku
Georgia: Tbilisi; Uzbekistan: Tashkent
"""

LESS_KNOWN = """
Turkmenistan: Ashgabat; Tajikistan: Dushanbe; Kyrgyzstan: Bishkek; Moldova: Chisinau; Montenegro: Podgorica
Liechtenstein: Vaduz; Bhutan: Thimphu; Laos: Vientiane; Bahrain: Manama; Mali: Bamako; Niger: Niamey; Togo: Lome
Burkina Faso: Ouagadougou; Cameroon: Yaounde; Gabon: Libreville; Rwanda: Kigali; Malawi: Lilongwe; Mozambique: Maputo
Madagascar: Antananarivo; Namibia: Windhoek; Botswana: Gaborone; Lesotho: Maseru; Liberia: Monrovia; Guinea: Conakry
Sierra Leone: Freetown; the Gambia: Banjul; Mauritania: Nouakchott; Eritrea: Asmara; Suriname: Paramaribo
Guyana: Georgetown; Barbados: Bridgetown; Fiji: Suva; Samoa: Apia; Belize: Belmopan; Cape Verde: Praia
"""

TWO_WORDS = """
Argentina: Buenos Aires; India: New Delhi; Malaysia: Kuala Lumpur; Ethiopia: Addis Ababa; Cambodia: Phnom Penh
Papua New Guinea: Port Moresby; Mauritius: Port Louis; Vanuatu: Port Vila; Costa Rica: San Jose
the Dominican Republic: Santo Domingo
"""

CAPITAL = "What is the capital of {}? Answer with the name of the city only."
COUNTRY = "Which country has {} as its capital? Answer with the name of the country only."


def items() -> list[Item]:
    """The capital of each country, and for those with a one-word name also the country of the capital."""
    random = Random("capitals")
    found = []
    for text in (WELL_KNOWN, KNOWN, LESS_KNOWN, TWO_WORDS):
        for country, capital, choices in with_wrong_choices(parse_pairs(text), random):
            found.append(Item((user(CAPITAL.format(country)),), capital, choices))
    for text in (WELL_KNOWN, KNOWN, LESS_KNOWN):
        countries = {capital: country for country, capital in parse_pairs(text).items() if " " not in country}
        for capital, country, choices in with_wrong_choices(countries, random):
            found.append(Item((user(COUNTRY.format(capital)),), country, choices))
    return found


SKILL = Skill(
    about="capitals of countries, and the countries of capitals",
    items=items,
    scorer="choice",
    shots=(
        Item((user(CAPITAL.format("Egypt")),), "Cairo", ("Cairo", "Brasilia", "Algiers", "Tunis")),
        Item((user(COUNTRY.format("Algiers")),), "Algeria", ("Brazil", "Algeria", "Tunisia", "Egypt")),
        Item((user(CAPITAL.format("Brazil")),), "Brasilia", ("Cairo", "Algiers", "Brasilia", "Tunis")),
    ),
    chance=0.25,
)
