"""Words of many languages by which an answer denies, offers, lists and takes back what it names."""

import re
from typing import Final

from ilis_guard.lab.mentions import fold


def folded_words(text: str) -> frozenset[str]:
    """Split a list of words, folded as those of answers."""
    return frozenset(map(fold, text.split()))


def _phrases(text: str) -> list[tuple[str, ...]]:
    """Split a list of phrases into words."""
    return [tuple(phrase.split()) for phrase in text.split("|")]


SENTENCE_ENDS: Final = frozenset(".!?;:\n。！？；：।؟…")
COMMAS: Final = frozenset(',、，،(（)）—–[]"“”„«»')
CONTRAST: Final = folded_words(
    "but however rather instead although whereas because sondern aber mais sino pero ma bensi mas maar utan men tylko"
    " ale lecz но зато 而是 而 하지만 melainkan tetapi אלא بل hanem ci dar αλλά alla fakat बल्कि mà"
)
"""Words that end a negation's reach."""
NEGATIONS: Final = folded_words(
    "not no nobody never neither nor none cannot cant isnt arent wasnt werent dont doesnt didnt couldnt wont wouldnt"
    " shouldnt hasnt havent hadnt aint without except excluding"
    " nicht kein keine statt anstatt keinen keinem keiner nie niemals weder noch ohne"
    " pas ni jamais non aucun aucune sans ningun nunca tampoco nao nem nunca mai nessun"
    " niet geen inte ikke ej nie ani не ни нет khong bukan tidak δεν μην οχι"
    " ليس ليست ليسوا لا لم لن לא אינו אינה nu nem ei neni nije"
    " hardly scarcely barely doubt doubts doubtful unlikely improbable impossible"
    " keineswegs keinesfalls außer guere sauf hormis jamas excepto salvo mica tranne nooit"
    " nimmer behalve aldrig varken utom hvarken nigdy никогда вряд кроме неверно неправильно kecuali غير"
)
LAST_OF_PAIRS: Final = folded_words("nor noch ni ani nem ни")
AFFIRMATIONS: Final = tuple(
    tuple(fold(word) for word in phrase)
    for phrase in _phrases(
        "not only|not just|not merely|nicht nur|pas seulement|non seulement|non solo|no solo|no solamente|nao so"
        "|niet alleen|inte bara|nie tylko|не только|no doubt|without doubt|without a doubt|without question|no question"
        "|none other than|no other than|none but|no one but|nothing but|nothing other than|sans doute|ohne zweifel"
        "|sin duda|senza dubbio|sem duvida|no less than|ne que|nest que|why not|not surprisingly|niemand anderes als"
    )
)
EXCLUSIONS: Final = (
    ("anything", "but"),
    ("all", "but"),
    ("anywhere", "but"),
    ("anyone", "but"),
    ("other", "than"),
    ("instead", "of"),
    ("rather", "than"),
    ("far", "from"),
    ("used", "to"),
    ("au", "lieu"),
    ("plutot", "que"),
    ("en", "lugar"),
    ("en", "vez"),
    ("invece", "di"),
    ("ao", "inves"),
    ("anstelle", "von"),
    ("opposed", "to"),
    ("nest", "plus"),
    ("nest", "point"),
    ("em", "vez"),
    ("in", "plaats"),
    ("none", "of"),
    ("everything", "but"),
    ("wrong", "to"),
    ("incorrect", "to"),
    ("mistake", "to"),
    ("false", "that"),
    ("untrue", "that"),
    ("wrong", "that"),
    ("вместо", "того"),
)
PARENTHETICAL: Final = folded_words("as like contrary despite though although wie comme como come of")
SUBORDINATE: Final = folded_words("whether if that ob dass daß si que se che czy ли że что")
PREDICATES: Final = folded_words(
    "is was are were does did do has have had can could will would should may might ist war sind kann est etait es era"
    " fue esta son e foi ar ar var er byl jest nest ειναι es"
)
DENIED_PREDICATES: Final = folded_words(
    "isnt arent wasnt werent doesnt didnt dont cannot cant couldnt wont wouldnt hasnt havent hadnt"
)
WRONG: Final = folded_words(
    "wrong incorrect mistake false untrue mistaken falsch unrichtig inkorrekt faux fausse incorrecte"
    " incorrecto incorrecta falso"
    " falsa errado errada sbagliato sbagliata scorretto fout onjuist fel felaktigt неверно неправильно неверный błędne"
    " yanlis salah sai خطأ خاطئ गलत"
)
"""What is said of an answer that isn't one: "Paris is wrong"."""
DENIALS_BEHIND: Final = folded_words("नहीं न degil degildir नही نیست ليس ليست אינה אינו نہیں নয় না அல்ல இல்லை bukan")
DENIAL_IN_A_RUN: Final = re.compile(
    r"(?:だ|である)?と(?:は|も)?(?:限ら|言え|いえ|思わ|思い?ませ|考えませ|言いませ)|[はがも]?(?:違|間違|誤)|以外|ではござい?ませ|でも\S*でもな"
    r"|(?:是|就是)?(?:错|錯|不对|不對|不正确)|(?:은|는|이|가)?\s*틀[렸린]|(?:이?라고)\s*(?:생각하지|할 수 없)|이외"
    r"|[はがもでじゃ]*(?:では|じゃ|でも|は)(?:なく|ない|な[いかくし]|ありません|あるまい|無)"
    r"|(?:이|가|은|는)?\s*아[니닌닙]|不是|并不|並不|并非|並非|不|非|ไม่ใช่"
)
DENIAL_BEFORE_IN_A_RUN: Final = re.compile(
    r"(?:(?:不|没)(?:太|大|一定)?(?:可能|应该|會|会|算|见得|見得)?是?|除了|不是|并非|並非|不|非|没有|沒有|ไม่ใช่|ไม่|มิใช่)$"
)
OR: Final = folded_words(
    "or oder ou o eller lub albo czy или або veya yahut atau hoac או أو या 또는 혹은 아니면 vagy sau nebo tai η"
    " bzw beziehungsweise oppure ofwel hetzij либо чи یا अथवा বা அல்லது vs versus"
    " alternatively otherwise"
    " 或 或者 还是 還是 か または あるいは もしくは หรือ"
)
OR_IN_A_RUN: Final = re.compile(r"(?:或者?|还是|還是|または|あるいは|もしくは|か|หรือ)")
AND: Final = folded_words("and und sowie et y e en och og i и та ve 그리고 und dan και και και और و ו &")
AND_IN_A_RUN: Final = re.compile(
    r"と(?=[一-龥ァ-ヴ])(?![思言呼答考称は])|[和与與跟](?=[一-龥])(?!平|.*(?:不同|一样|一樣|相比|同样))|(?:และ|กับ).|وال."
)
"""At the beginning of a run of letters, beside what is mentioned."""
BETWEEN: Final = folded_words("between zwischen entre tra tussen między между mellan")
QUALIFIERS: Final = folded_words("new north south east west northern southern eastern western papua equatorial")
"""Before a name, written with a capital, they make another: South Africa, New Guinea."""
NO_ALTERNATIVES: Final = folded_words("so thereabouts more less mehr weniger plus moins")
MAYBE: Final = folded_words("maybe perhaps possibly probably even either rather vielleicht peutetre quizas forse")
NEW_CLAUSE: Final = folded_words(
    "it its thats he she they we i you this that there cest esta est is was are were has lies which who er sie es"
    " il elle"
)
OPINION: Final = re.compile(
    r"\b(?:people|many|some|most|they|others|everyone|you)\b(?: \w+){0,2} "
    r"(?:think|thinks|thought|believe|believed|assume|assumed|say|said|guess|expect)\b"
    r"|\b(?:mistaken|mistakenly|wrongly|confused)\b"
)
FIRST: Final = folded_words("no non nao не khong nie neni nije nu δεν ei ne không ليس")
"""Negations before the predicate: "Madrid no es"."""
UNKNOWN: Final = re.compile(r"i (?:have no idea|dont know|do not know|am not sure)|im not sure|not sure|no idea")
NO: Final = folded_words("no nope nein non nao nie нет いいえ 不 不是 아니요 아니오 لا לא nej nee hayır")
TAKEN_BACK: Final = re.compile(r"\b(?:no|nein|non) (?:wait|sorry|i mean)\b|\b(?:wait no|i mean|or rather|correction)\b")
RETRACTION: Final = re.compile(
    r"(?:no |oh |oops |hmm )*(?:wait|scratch that|correction|my mistake|hold on|i meant?)\b"
    r"|(?:actually|sorry|pardon|rather)(?= \S+(?: \S+)?$)"
)
"""After a mention and a pause: "Paris... actually, Lyon"."""
PLACES: Final = folded_words("in from near far at on part inside outside within surprisingly to into about for with by")
"""After "is not" they say where something is, not what it is."""
OFFERS: Final = folded_words(
    "options candidates possibilities choices optionen möglichkeiten opciones opzioni варианты"
)
LONGEST_ITEM: Final = 4
BULLET: Final = re.compile(r"^(?:[-*•·]|\(?\d{1,2}[.)])$")
