package workload

import (
	"slices"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// content fills in what a request asks for; its Index, At and Stage are set.
type content interface{ fill(r *Request) }

// Stream joins an arrival process with a kind of content into a Source.
type Stream struct {
	arrivals *Arrivals
	content  content
	n        int
}

// Next implements Source.
func (s *Stream) Next() (Request, bool) {
	at, stage, ok := s.arrivals.Next()
	if !ok {
		return Request{}, false
	}
	r := Request{Index: s.n, At: at, Stage: stage, After: NoRequest}
	s.content.fill(&r)
	r.Input = tokensOf(r.Prompt)
	r.Output = max(r.Output, 1)
	s.n++
	return r, true
}

// Kinds of generated runs, mixed into their ids so that no two kinds collide.
const (
	runRandom uint64 = iota + 1
	runSystem
	runQuestion
	runAnswer
	runTrace
)

// Random is a workload of unrelated prompts.
type Random struct {
	Input, Output Dist // tokens
}

// Source returns the workload's requests at the given arrivals.
func (w Random) Source(a *Arrivals, seed uint64) *Stream {
	return &Stream{arrivals: a, content: &randomContent{w: w, seed: seed, rand: stat.NewRand(seed, "random")}}
}

type randomContent struct {
	w    Random
	seed uint64
	rand *stat.Rand
}

func (c *randomContent) fill(r *Request) {
	in := max(c.w.Input.Draw(c.rand), 1)
	r.Output = c.w.Output.Draw(c.rand)
	r.Prompt = []Segment{{ID: mix(c.seed, runRandom, uint64(r.Index)), Tokens: in}}
}

// SharedPrefix is a workload of groups whose prompts begin with one system
// prompt each. The prompts of all groups are shuffled once and then sent round
// and round, so a load longer than Groups x PromptsPerGroup repeats itself.
type SharedPrefix struct {
	Groups          int  // at least 1
	PromptsPerGroup int  // at least 1
	System          Dist // tokens; one draw per group
	Question        Dist // tokens; one draw per prompt
	Output          Dist // tokens; one draw per prompt

	// MultiTurn makes each prompt a user in conversation: every round appends
	// the question to all that was said before, and waits for the last answer.
	MultiTurn bool
}

// Source returns the workload's requests at the given arrivals.
func (w SharedPrefix) Source(a *Arrivals, seed uint64) *Stream {
	c := &sharedContent{w: w, seed: seed, rand: stat.NewRand(seed, "shared_prefix")}
	for g := range w.Groups {
		sys := Segment{ID: mix(seed, runSystem, uint64(g)), Tokens: w.System.Draw(c.rand), Role: RoleSystem}
		for range w.PromptsPerGroup {
			c.users = append(c.users, sharedUser{
				group: g + 1, last: NoRequest, history: []Segment{sys},
				question: max(w.Question.Draw(c.rand), 1), output: w.Output.Draw(c.rand),
			})
		}
	}
	c.order = c.rand.Perm(len(c.users))
	return &Stream{arrivals: a, content: c}
}

type sharedContent struct {
	w     SharedPrefix
	seed  uint64
	rand  *stat.Rand
	users []sharedUser
	order []int
}

type sharedUser struct {
	group, question, output int
	history                 []Segment // system prompt, and with MultiTurn what was said
	turn, last              int
}

func (c *sharedContent) fill(r *Request) {
	u := c.order[r.Index%len(c.order)]
	user := &c.users[u]
	question := Segment{ID: mix(c.seed, runQuestion, uint64(u), uint64(user.turn)), Tokens: user.question}
	r.Group, r.Output = user.group, user.output
	r.Prompt = append(slices.Clip(user.history), question)
	if !c.w.MultiTurn {
		return
	}
	r.Session, r.Turn, r.After = uint64(u)+1, user.turn, user.last
	user.history = append(r.Prompt, Segment{
		ID: mix(c.seed, runAnswer, uint64(u), uint64(user.turn)), Tokens: max(user.output, 1), Role: RoleAssistant,
	})
	user.turn, user.last = user.turn+1, r.Index
}

// Conversations is a workload of agents in conversation. Each of Slots holds
// one conversation at a time; requests go round the slots, each the next turn
// of its conversation, and a conversation that has had all its turns gives its
// slot to a new one with text of its own.
type Conversations struct {
	Slots         int  // conversations at once, at least 1
	SharedSystem  int  // tokens of system prompt that all conversations share
	DynamicSystem Dist // further tokens of system prompt, a conversation's own
	Turns         Dist // turns per conversation, at least 1
	Input         Dist // tokens the user adds per turn
	Output        Dist // tokens answered per turn
	ToolLatency   Dist // seconds between an answer and the next turn
	MaxModelLen   int  // a turn that would not fit starts a new conversation; 0 for no limit
}

// Source returns the workload's requests at the given arrivals.
func (w Conversations) Source(a *Arrivals, seed uint64) *Stream {
	c := &conversationContent{w: w, seed: seed, rand: stat.NewRand(seed, "conversation_replay")}
	c.slots = make([]conversation, w.Slots)
	return &Stream{arrivals: a, content: c}
}

type conversationContent struct {
	w     Conversations
	seed  uint64
	rand  *stat.Rand
	slots []conversation
	begun uint64
}

type conversation struct {
	id            uint64
	history       []Segment
	length        int // tokens in history
	turn, turns   int
	last          int
	nextThink     time.Duration
	input, output int // of the turn to come
}

func (c *conversationContent) fill(r *Request) {
	cv := &c.slots[r.Index%len(c.slots)]
	if cv.turn < cv.turns {
		c.drawTurn(cv)
	}
	if cv.turn >= cv.turns || !c.fits(cv.length+cv.input+cv.output) {
		c.begin(cv)
	}
	r.Session, r.Turn, r.After, r.Think = cv.id, cv.turn, cv.last, cv.nextThink
	r.Output = cv.output
	r.Prompt = append(slices.Clip(cv.history), Segment{
		ID: mix(c.seed, runQuestion, cv.id, uint64(cv.turn)), Tokens: cv.input,
	})
	cv.history = append(r.Prompt, Segment{
		ID: mix(c.seed, runAnswer, cv.id, uint64(cv.turn)), Tokens: cv.output, Role: RoleAssistant,
	})
	cv.length += cv.input + cv.output
	cv.turn, cv.last = cv.turn+1, r.Index
	cv.nextThink = c.w.ToolLatency.DrawSeconds(c.rand)
}

// begin puts a new conversation into a slot. Its first turn is made to fit the
// model by shortening first the user's words, then its own system prompt.
func (c *conversationContent) begin(cv *conversation) {
	c.begun++
	last, think := cv.last, time.Duration(0)
	if c.begun <= uint64(len(c.slots)) {
		last = NoRequest
	}
	*cv = conversation{id: c.begun, turns: max(c.w.Turns.Draw(c.rand), 1), last: last, nextThink: think}
	c.drawTurn(cv)
	own := c.w.DynamicSystem.Draw(c.rand)
	if m := c.w.MaxModelLen; m > 0 {
		room := m - c.w.SharedSystem - cv.output
		own = max(min(own, room-1), 0)
		cv.input = max(min(cv.input, room-own), 1)
	}
	add := func(id uint64, n int) {
		if n > 0 {
			cv.history = append(cv.history, Segment{ID: id, Tokens: n, Role: RoleSystem})
			cv.length += n
		}
	}
	add(mix(c.seed, runSystem, 0), c.w.SharedSystem)
	add(mix(c.seed, runSystem, cv.id), own)
}

func (c *conversationContent) drawTurn(cv *conversation) {
	cv.input = max(c.w.Input.Draw(c.rand), 1)
	cv.output = max(c.w.Output.Draw(c.rand), 1)
}

func (c *conversationContent) fits(tokens int) bool {
	return c.w.MaxModelLen == 0 || tokens <= c.w.MaxModelLen
}
