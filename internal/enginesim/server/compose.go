package server

import (
	"strings"

	"penstock.dev/penstock/internal/enginesim"
)

// answer is all that the model will say to one prompt. It is known as soon as
// the prompt is, since it depends on nothing else; the engine only decides
// when each token comes.
type answer struct {
	text   string
	tokens []uint32
	ends   []int // ends[i] is the length of text once token i is out; a stop string is never in it
	chain  []uint64
	finish enginesim.Reason
	stop   string // the stop string that ended it
	tool   string // the tool that is called; text is then its arguments
}

// terms are the limits on an answer.
type terms struct {
	seed     uint64
	max      int // tokens, at least 1
	min      int // tokens before which nothing but max ends it
	natural  int // tokens after which it ends by itself; above max: never
	stops    []string
	keepStop bool // the stop string stays in the text
	keep     bool // the tokens are wanted
}

// compose speaks after a prompt of the given length, context and chain. It
// extends the chain past its length.
func compose(prompt int, c enginesim.Context, chain []uint64, v voice, t terms) answer {
	a := answer{finish: enginesim.FinishLength, chain: chain}
	n := min(t.max, max(t.natural, t.min))
	if n < t.max || t.natural == t.max {
		a.finish = enginesim.FinishStop
	}
	longest := 0
	for _, s := range t.stops {
		longest = max(longest, len(s))
	}
	a.ends = make([]int, 0, n)
	text := make([]byte, 0, maxPiece*n)
	for i := 1; i <= n; i++ {
		token := v.next(c.Draw(t.seed))
		c = c.Add(token)
		if t.keep {
			a.tokens = append(a.tokens, token)
		}
		if (prompt+i)%int(enginesim.BlockTokens) == 0 {
			a.chain = append(a.chain, c.Key())
		}
		from := max(0, len(text)-longest+1)
		text = appendText(text, token)
		a.ends = append(a.ends, len(text))
		if longest == 0 || i < t.min {
			continue
		}
		if at, stop := findStop(string(text[from:]), t.stops); stop != "" {
			a.finish, a.stop = enginesim.FinishStop, stop
			text = text[:from+at]
			if t.keepStop {
				text = append(text, stop...)
			}
			break
		}
	}
	a.text = string(text)
	for i := len(a.ends) - 1; i >= 0 && a.ends[i] > len(text); i-- {
		a.ends[i] = len(text)
	}
	return a
}

// findStop returns where in text the first of the stop strings begins, and
// which it is; the empty string when there is none.
func findStop(text string, stops []string) (at int, stop string) {
	for _, s := range stops {
		if i := strings.Index(text, s); i >= 0 && (stop == "" || i < at) {
			at, stop = i, s
		}
	}
	return at, stop
}

// delta returns the text that token i brings.
func (a *answer) delta(i int) string {
	if i == 0 {
		return a.text[:a.ends[0]]
	}
	return a.text[a.ends[i-1]:a.ends[i]]
}
