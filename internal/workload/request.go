// Package workload makes requests: synthetic ones from a description in
// inference-perf's YAML shape, and recorded ones from trace files. Every
// request is a small value that says when it should be sent, what its prompt
// is made of and how long an answer it wants; the same seed and options always
// give the same requests, so that two runs can be compared on one load. The
// package does no I/O and reads no clock: the load generator and the simulator
// drive it alike.
package workload

import (
	"iter"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// Role says who speaks in a run of a prompt.
type Role uint8

// The roles of a prompt's runs.
const (
	RoleUser Role = iota
	RoleSystem
	RoleAssistant
)

// String returns the role as the chat API spells it.
func (r Role) String() string {
	switch r {
	case RoleSystem:
		return "system"
	case RoleAssistant:
		return "assistant"
	default:
		return "user"
	}
}

// Segment is a run of prompt text. Its text follows from ID alone and its
// length from Tokens: equal ids give equal text, and the text of a shorter run
// is a prefix of the text of a longer one with the same id.
type Segment struct {
	ID     uint64
	Tokens int  // length, at least 0
	Role   Role // an assistant run stands for an earlier answer of the session
}

// NoRequest is the index of no request.
const NoRequest = -1

// Request is one request of a workload: compact, immutable, and complete enough
// to be sent by a load generator or simulated.
type Request struct {
	Index  int           // place in the workload, from 0
	At     time.Duration // intended send time from the start of the load; never falls from one request to the next
	Stage  int           // load stage, from 0
	Prompt []Segment     // in order; not to be modified
	Input  int           // prompt tokens, the sum over Prompt
	Output int           // answer tokens wanted, at least 1

	// A turn of a conversation waits for the one before it: it is sent at At, or
	// Think after the end of the answer to request After, whichever is later.
	Session uint64        // names the conversation; 0 for none
	Turn    int           // place in the conversation, from 0
	After   int           // Index of the request to wait for, or NoRequest; always below Index
	Think   time.Duration // pause between that answer's end and this request

	Group  int    // group of requests that share a system prompt, from 1; 0 for none
	Tenant string // whom to charge; empty for nobody in particular
}

// Source yields the requests of a workload one by one, At never falling.
type Source interface {
	// Next returns the next request, or false when there are no more. The
	// request's Prompt stays valid and unchanged for good.
	Next() (Request, bool)
}

// All ranges over the requests left in a source.
func All(s Source) iter.Seq[Request] {
	return func(yield func(Request) bool) {
		for {
			r, ok := s.Next()
			if !ok || !yield(r) {
				return
			}
		}
	}
}

// Limit is a source cut short, so that runs of different speed still send the
// same slice.
type Limit struct {
	Source   Source
	Requests int           // yield at most so many; 0 for no limit
	Until    time.Duration // yield only requests intended before this offset; 0 for no limit

	seen int
}

// Next implements Source.
func (l *Limit) Next() (Request, bool) {
	if l.Requests > 0 && l.seen >= l.Requests {
		return Request{}, false
	}
	r, ok := l.Source.Next()
	if !ok || (l.Until > 0 && r.At >= l.Until) {
		return Request{}, false
	}
	l.seen++
	return r, true
}

// Messages splits a prompt into the messages of a chat: neighbouring runs of
// one role make one message.
func Messages(prompt []Segment) iter.Seq2[Role, []Segment] {
	return func(yield func(Role, []Segment) bool) {
		for i := 0; i < len(prompt); {
			j := i + 1
			for j < len(prompt) && prompt[j].Role == prompt[i].Role {
				j++
			}
			if !yield(prompt[i].Role, prompt[i:j]) {
				return
			}
			i = j
		}
	}
}

// Fingerprint condenses everything about the request that a server sees. Two
// runs sent the same requests if the sums of their fingerprints agree.
func (r *Request) Fingerprint() uint64 {
	h := mix(uint64(r.Index), uint64(r.Output), r.Session)
	for _, s := range r.Prompt {
		h = mix(h, s.ID, uint64(s.Tokens)<<2|uint64(s.Role))
	}
	return h
}

// mix folds words into one well-scrambled word; the order matters.
func mix(words ...uint64) uint64 {
	h := uint64(0x6a09e667f3bcc909)
	for _, w := range words {
		h = stat.Mix64(h ^ w)
	}
	return h
}

func tokensOf(prompt []Segment) int {
	n := 0
	for _, s := range prompt {
		n += s.Tokens
	}
	return n
}
