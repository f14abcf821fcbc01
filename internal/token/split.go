package token

import (
	"unicode"
	"unicode/utf8"
)

// class is what the splitting patterns want to know of a character.
type class uint8

const (
	letter  class = 1 << iota // \p{L}
	number                    // \p{N}
	space                     // \s
	newline                   // \r and \n
	mark                      // \p{M}
	upper                     // \p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}
	lower                     // \p{Ll}\p{Lm}\p{Lo}\p{M}
)

// classify looks a character up in Unicode's tables, which takes a while: a
// [splitter] does it once for those that occur.
func classify(r rune) class {
	var c class
	if unicode.IsLetter(r) {
		c = letter
		switch {
		case unicode.IsUpper(r) || unicode.IsTitle(r):
			c |= upper
		case unicode.IsLower(r):
			c |= lower
		default:
			c |= upper | lower
		}
	}
	switch {
	case unicode.Is(unicode.N, r):
		c |= number
	case unicode.Is(unicode.M, r):
		c |= mark | upper | lower
	case unicode.IsSpace(r):
		c |= space
	}
	if r == '\r' || r == '\n' {
		c |= newline
	}
	return c
}

// style tells one family of patterns from another.
type style struct {
	gpt2   bool // the first pattern of all, simpler than the others
	begin  bool // contractions are pieces of their own
	end    bool // contractions belong to the word before them
	cased  bool // words end where lower case turns into upper
	marks  bool // marks are parts of words
	slash  bool // slashes may stand among the newlines behind punctuation
	digits int  // so many digits make a piece at most
}

// styles are the patterns that are known, by how tokenizer.json writes them.
// Go's regexp has no lookahead, so each is scanned by hand.
var styles = map[string]style{
	gpt2Pattern: {gpt2: true},
	`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`: {gpt2: true},

	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}` + rest:             {begin: true, digits: 3},                         // cl100k, Llama 3
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}` + rest:                  {begin: true, digits: 1},                         // Qwen 2 and 3
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}` + restMarks:      {begin: true, marks: true, digits: 1},            // the same with marks in words
	casedLower + contraction + `|` + casedUpper + contraction + `|\p{N}{1,3}` + restSlash: {cased: true, end: true, slash: true, digits: 3}, // o200k
	casedLower + `|` + casedUpper + `|\p{N}` + restSlash:                                  {cased: true, slash: true, digits: 1},            // Mistral's Tekken
}

const (
	// gpt2Pattern is what "ByteLevel" with "use_regex" stands for.
	gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

	rest        = `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	restMarks   = `| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	restSlash   = `| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	contraction = `(?i:'s|'t|'re|'ve|'m|'ll|'d)?`
	casedLower  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
	casedUpper  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
)

// splitter cuts text into the pieces that are merged each on its own.
type splitter struct {
	style
	word    class // what words are made of
	classes []class
}

func newSplitter(s style) *splitter {
	p := &splitter{style: s, word: letter, classes: make([]class, 1<<16)}
	if s.marks {
		p.word |= mark
	}
	for r := range p.classes {
		p.classes[r] = classify(rune(r))
	}
	return p
}

// at returns the class and the size of the character at s[i:], and nothing at
// the end.
func (p *splitter) at(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if b := s[i]; b < utf8.RuneSelf {
		return p.classes[b], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	if int(r) < len(p.classes) {
		return p.classes[r], n
	}
	return classify(r), n
}

// run returns where the characters from s[i:] on end that have one of want.
func (p *splitter) run(s string, i int, want class) int {
	for {
		c, n := p.at(s, i)
		if n == 0 || c&want == 0 {
			return i
		}
		i += n
	}
}

// others returns where the characters end that have none of these.
func (p *splitter) others(s string, i int, none class) int {
	for {
		c, n := p.at(s, i)
		if n == 0 || c&none != 0 {
			return i
		}
		i += n
	}
}

// next returns the length of the piece that s begins with; s is not empty.
func (p *splitter) next(s string) int {
	c, n := p.at(s, 0)
	if p.gpt2 {
		return p.nextGPT2(s, c, n)
	}
	if p.begin {
		if k := contracted(s, true); k > 0 {
			return k
		}
	}
	if p.cased {
		if k := p.casedWord(s, c, n); k > 0 {
			return k
		}
	} else if k := p.plainWord(s, c, n); k > 0 {
		return k
	}
	if c&number != 0 {
		i := n
		for k := 1; k < p.digits; k++ {
			d, m := p.at(s, i)
			if d&number == 0 {
				break
			}
			i += m
		}
		return i
	}
	from := 0
	if s[0] == ' ' {
		from = 1
	}
	none := space | number | p.word
	if i := p.others(s, from, none); i > from {
		for i < len(s) && (s[i] == '\n' || s[i] == '\r' || p.slash && s[i] == '/') {
			i++
		}
		return i
	}
	return p.spaces(s, true)
}

// nextGPT2 is next for the first of the patterns.
func (p *splitter) nextGPT2(s string, c class, n int) int {
	if k := contracted(s, false); k > 0 {
		return k
	}
	from := 0
	if s[0] == ' ' {
		if d, m := p.at(s, 1); m > 0 && d&space == 0 {
			from, c, n = 1, d, m
		}
	}
	switch {
	case c&letter != 0:
		return p.run(s, from+n, letter)
	case c&number != 0:
		return p.run(s, from+n, number)
	case c&space == 0:
		return p.others(s, from+n, letter|number|space)
	}
	return p.spaces(s, false)
}

// spaces returns the length of the piece of white space that s begins with. It
// ends behind its last newline, where newlines count, and leaves its last
// character to the word behind it.
func (p *splitter) spaces(s string, newlines bool) int {
	i, last, line := 0, 0, 0
	for {
		c, n := p.at(s, i)
		if n == 0 || c&space == 0 {
			break
		}
		last = i
		i += n
		if c&newline != 0 {
			line = i
		}
	}
	switch {
	case newlines && line > 0:
		return line
	case i == len(s) || last == 0:
		return i
	}
	return last
}

// plainWord returns the length of the word that s begins with, one character
// before it included, or 0.
func (p *splitter) plainWord(s string, c class, n int) int {
	if c&p.word != 0 {
		return p.run(s, n, p.word)
	}
	if c&(newline|number) != 0 {
		return 0
	}
	if i := p.run(s, n, p.word); i > n {
		return i
	}
	return 0
}

// casedWord is plainWord where case counts. The pattern first looks for capitals
// and then at least one small letter, then for at least one capital, each with
// and without a character before it.
func (p *splitter) casedWord(s string, c class, n int) int {
	before := c&(newline|number|letter) == 0
	end := 0
	if before {
		end = p.endsLower(s, n)
	}
	if end == 0 {
		end = p.endsLower(s, 0)
	}
	if end == 0 && before {
		end = p.endsUpper(s, n)
	}
	if end == 0 {
		end = p.endsUpper(s, 0)
	}
	if end > 0 && p.end {
		end += contracted(s[end:], true)
	}
	return end
}

// endsLower returns where capitals and then small letters from s[i:] on end. What
// is both, like a Chinese character, is given back when nothing small follows.
func (p *splitter) endsLower(s string, i int) int {
	both := 0
	for {
		c, n := p.at(s, i)
		if n == 0 || c&upper == 0 {
			break
		}
		i += n
		if c&lower != 0 {
			both = i
		}
	}
	if end := p.run(s, i, lower); end > i {
		return end
	}
	return both
}

// endsUpper returns where at least one capital and then small letters end.
func (p *splitter) endsUpper(s string, i int) int {
	j := p.run(s, i, upper)
	if j == i {
		return 0
	}
	return p.run(s, j, lower)
}

// contracted returns the length of the English contraction that s begins with,
// or 0. Without regard to case, the long s is an s too.
func contracted(s string, anyCase bool) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	a, b := s[1], byte(0)
	if len(s) > 2 {
		b = s[2]
	}
	if anyCase {
		if a == "ſ"[0] && b == "ſ"[1] {
			return 3
		}
		a, b = small(a), small(b)
	}
	switch {
	case a == 's', a == 't', a == 'm', a == 'd':
		return 2
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	}
	return 0
}

// small returns b in lower case.
func small(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
