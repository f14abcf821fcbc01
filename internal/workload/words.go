package workload

// words holds 256 common English words of three letters. With the space before
// it each is four bytes, and one token in the vocabularies of the usual
// byte-pair tokenizers, so that n words are n tokens almost exactly.
const words = "" +
	" ace act add age ago aid aim air all and ant any arc are arm art" +
	" ash ask ate axe bad bag ban bar bat bay bed bee beg bet bid big" +
	" bin bit bow box boy bud bug bus but buy bye cab can cap car cat" +
	" cow cry cup cut dad dam day den dew did dig dim dip dog dot dry" +
	" due dye ear eat egg end era eve eye fan far fat fed fee few fig" +
	" fin fit fix fly fog for fox fun fur gap gas gem get got gum guy" +
	" gym had ham has hat hay hen her hid him hip his hit hop hot how" +
	" hub hut ice ink inn its jam jar jaw jet job jog joy key kid kin" +
	" kit lab lap law lay led leg let lid lie lip lit log lot low mad" +
	" man map mat may men met mid mix mob mom mud mug nap net new nod" +
	" nor not now nut oak odd off oil old one our out owl own pad pan" +
	" pat pay pea pen pet pie pig pin pit pot put rag ram ran rap rat" +
	" raw ray red rib rid rim rip rod row rub rug run sad sat saw say" +
	" sea see set she shy sip sir sit six ski sky son sum sun tag tap" +
	" tax tea ten the tie tin tip toe ton too top toy try tub two use" +
	" van was wax way web wet who why win wit won yes yet you zip zoo"
