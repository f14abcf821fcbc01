package chat

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// kind is what a lexeme is.
type kind uint8

const (
	kindText  kind = iota // outside of tags
	kindBlock             // begins a block tag
	kindPrint             // begins a tag that prints
	kindEnd               // ends a tag
	kindName
	kindString
	kindInt
	kindFloat
	kindSign
)

// lexeme is a word of a template.
type lexeme struct {
	kind kind
	text string
}

// lexer cuts a template into text and the words inside its tags.
type lexer struct {
	s      string // not read yet
	out    []lexeme
	starts bool // s begins a line, as Jinja sees lines
}

// space is what Python takes for white space.
const space = " \t\n\r\v\f\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

func (l *lexer) run() {
	for l.s != "" {
		at := opening(l.s)
		if at < 0 {
			l.text(l.s)
			return
		}
		text, mark := l.s[:at], l.s[at+1]
		l.s = l.s[at+2:]
		if mark == '%' && l.raw(text) {
			continue
		}
		l.text(l.before(text, mark != '{'))
		switch mark {
		case '#':
			l.comment()
		case '%':
			l.tag(kindBlock, "%}")
		default:
			l.tag(kindPrint, "}}")
		}
	}
}

// opening returns where the first tag begins, -1 for none.
func opening(s string) int {
	for i := 0; i+1 < len(s); i++ {
		n := strings.IndexByte(s[i:], '{')
		if n < 0 || i+n+1 >= len(s) {
			return -1
		}
		if i += n; strings.IndexByte("{%#", s[i+1]) >= 0 {
			return i
		}
	}
	return -1
}

func (l *lexer) text(s string) {
	if s != "" {
		l.out = append(l.out, lexeme{kindText, s})
	}
}

// before returns text before a tag without the white space that goes with the
// tag, and consumes the tag's sign, which says so.
func (l *lexer) before(text string, block bool) string {
	switch {
	case strings.HasPrefix(l.s, "-"):
		l.s = l.s[1:]
		return strings.TrimRight(text, space)
	case strings.HasPrefix(l.s, "+"):
		l.s = l.s[1:]
	case block:
		line := strings.LastIndexByte(text, '\n') + 1
		if (line > 0 || l.starts) && strings.Trim(text[line:], space) == "" {
			return text[:line]
		}
	}
	return text
}

// after consumes the white space that goes with the end of a tag, which is in
// front of what is left.
func (l *lexer) after(sign byte, line bool) {
	rest := l.s
	switch {
	case sign == '-':
		rest = strings.TrimLeft(rest, space)
	case sign != '+' && line:
		rest = strings.TrimPrefix(rest, "\n")
	}
	eaten := l.s[:len(l.s)-len(rest)]
	l.s, l.starts = rest, strings.HasSuffix(eaten, "\n")
}

func (l *lexer) comment() {
	end := strings.Index(l.s, "#}")
	if end < 0 {
		fail("a comment does not end")
	}
	sign := byte(0)
	if end > 0 {
		sign = l.s[end-1]
	}
	l.s = l.s[end+2:]
	l.after(sign, true)
}

// raw reads a block in which nothing is a tag, if one comes next.
func (l *lexer) raw(text string) bool {
	inside, begins := tagWord(l.s, "raw")
	if !begins {
		return false
	}
	l.text(l.before(text, true))
	l.s = l.s[len(l.s)-len(inside.rest):]
	l.after(inside.sign, false)
	for at := 0; ; {
		n := strings.Index(l.s[at:], "{%")
		if n < 0 {
			fail("a raw block does not end")
		}
		at += n
		if end, ok := tagWord(l.s[at+2:], "endraw"); ok {
			text := l.s[:at]
			l.s = l.s[at+2:]
			l.text(l.before(text, true))
			l.s = end.rest
			l.after(end.sign, true)
			return true
		}
		at += 2
	}
}

// tagEnd is what follows a tag.
type tagEnd struct {
	rest string
	sign byte
}

// tagWord reads the inside of a block tag that has only the word in it.
func tagWord(s, word string) (tagEnd, bool) {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		s = s[1:]
	}
	s, ok := strings.CutPrefix(strings.TrimLeft(s, space), word)
	if !ok {
		return tagEnd{}, false
	}
	s = strings.TrimLeft(s, space)
	sign := byte(0)
	if s != "" && (s[0] == '-' || s[0] == '+') {
		sign, s = s[0], s[1:]
	}
	rest, ok := strings.CutPrefix(s, "%}")
	return tagEnd{rest, sign}, ok
}

// tag reads what is inside a tag.
func (l *lexer) tag(first kind, last string) {
	l.out = append(l.out, lexeme{first, ""})
	for open := 0; ; {
		l.s = strings.TrimLeft(l.s, space)
		if open == 0 && l.ends(last) {
			l.out = append(l.out, lexeme{kindEnd, ""})
			l.after(l.sign(last), first == kindBlock)
			return
		}
		w, n := word(l.s)
		if n == 0 {
			fail("%.20q inside of a tag", l.s)
		}
		if l.s = l.s[n:]; w.kind == kindSign {
			switch w.text {
			case "(", "[", "{":
				open++
			case ")", "]", "}":
				open--
			}
		}
		l.out = append(l.out, w)
	}
}

// ends reports whether a tag ends here.
func (l *lexer) ends(last string) bool {
	s := l.s
	if s != "" && (s[0] == '-' || s[0] == '+' && last == "%}") {
		s = s[1:]
	}
	return strings.HasPrefix(s, last)
}

// sign consumes the end of a tag and returns its sign, 0 for none.
func (l *lexer) sign(last string) byte {
	sign := byte(0)
	if !strings.HasPrefix(l.s, last) {
		sign, l.s = l.s[0], l.s[1:]
	}
	l.s = l.s[len(last):]
	return sign
}

// signs are tried in order.
var signs = []string{"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ",", ":", "|", "(", ")", "[", "]", "{", "}"}

// word reads one word of a tag and returns how long it is, 0 for none.
func word(s string) (lexeme, int) {
	if s == "" {
		return lexeme{}, 0
	}
	switch c := s[0]; {
	case c == '\'' || c == '"':
		return quoted(s)
	case isDigit(c):
		return digits(s)
	case isLetter(c):
		n := 1
		for n < len(s) && (isLetter(s[n]) || isDigit(s[n])) {
			n++
		}
		if n < len(s) && s[n] >= utf8.RuneSelf {
			return lexeme{}, 0 // a name in another script
		}
		return lexeme{kindName, s[:n]}, n
	}
	for _, sign := range signs {
		if strings.HasPrefix(s, sign) {
			return lexeme{kindSign, sign}, len(sign)
		}
	}
	return lexeme{}, 0
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isLetter(c byte) bool { return c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' }

// digits reads a number in decimal digits.
func digits(s string) (lexeme, int) {
	run := func(i int) int {
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		return i
	}
	n, k := run(0), kindInt
	if n+1 < len(s) && s[n] == '.' && isDigit(s[n+1]) {
		n, k = run(n+1), kindFloat
	}
	if n < len(s) && s[n]|0x20 == 'e' {
		from := n + 1
		if from < len(s) && (s[from] == '+' || s[from] == '-') {
			from++
		}
		if to := run(from); to > from {
			n, k = to, kindFloat
		}
	}
	if n < len(s) && isLetter(s[n]) || k == kindInt && n > 1 && s[0] == '0' {
		return lexeme{}, 0
	}
	return lexeme{k, s[:n]}, n
}

// escapes are those of Python that stand for one character by one letter.
var escapes = map[byte]string{
	'n': "\n", 't': "\t", 'r': "\r", '\\': "\\", '\'': "'", '"': "\"", '\n': "", 'a': "\a", 'b': "\b", 'f': "\f", 'v': "\v",
}

// codes are the escapes that go on with hexadecimal digits, and how many.
var codes = map[byte]int{'x': 2, 'u': 4, 'U': 8}

// quoted reads a string.
func quoted(s string) (lexeme, int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == s[0]:
			return lexeme{kindString, b.String()}, i + 1
		case s[i] != '\\' || i+1 == len(s):
			b.WriteByte(s[i])
		default:
			i++
			n := codes[s[i]]
			to, known := escapes[s[i]]
			switch {
			case known:
				b.WriteString(to)
			case n > 0:
				r, err := strconv.ParseUint(s[min(i+1, len(s)):min(i+1+n, len(s))], 16, 32)
				if err != nil || !utf8.ValidRune(rune(r)) {
					return lexeme{}, 0
				}
				b.WriteRune(rune(r))
				i += n
			case isDigit(s[i]) || s[i] == 'N':
				return lexeme{}, 0 // characters by octal number or name
			default:
				b.WriteString(s[i-1 : i])
				b.WriteByte(s[i])
			}
		}
	}
	return lexeme{}, 0
}
