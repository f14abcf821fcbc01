package tokens

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// oracle is an engine that takes some time to answer.
type oracle struct {
	mu     sync.Mutex
	delay  time.Duration
	answer func(path string, body []byte) (status int, answer string)
	paths  []string
	bodies []string
}

func (o *oracle) Send(ctx context.Context, _, path string, _ http.Header, body []byte) (*http.Response, fleet.Failure, error) {
	o.mu.Lock()
	o.paths, o.bodies = append(o.paths, path), append(o.bodies, string(body))
	delay, answer := o.delay, o.answer
	o.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, fleet.FailTimeout, ctx.Err()
		}
	}
	status, text := answer(path, body)
	if status == 0 {
		return nil, fleet.FailConnect, fmt.Errorf("connection refused")
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text))}, fleet.FailNone, nil
}

func (o *oracle) set(delay time.Duration, answer func(path string, body []byte) (int, string)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.delay, o.answer = delay, answer
}

// asked returns the paths asked since the last call.
func (o *oracle) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.paths
	o.paths = nil
	return out
}

// letters is a tokenizer with a token for every letter of a prompt, and a
// template that ends with two tokens.
func letters(body []byte) []uint32 {
	var q struct {
		Prompt   string
		Messages []struct{ Role, Content string }
	}
	if err := json.Unmarshal(body, &q); err != nil {
		panic(err)
	}
	var out []uint32
	add := func(s string) {
		for _, b := range []byte(s) {
			out = append(out, uint32(b))
		}
	}
	add(q.Prompt)
	for _, m := range q.Messages {
		out = append(out, 1000)
		add(m.Role + ":" + m.Content)
		out = append(out, 1001)
	}
	if len(q.Messages) > 0 {
		out = append(out, 1000)
		add("assistant:")
	}
	return out
}

// render answers as an engine with render endpoints.
func render(_ string, body []byte) (int, string) {
	b, _ := json.Marshal(map[string]any{"token_ids": letters(body), "features": nil})
	return http.StatusOK, string(b)
}

func newOracle() *oracle { return &oracle{answer: render} }

// start returns a source that waits for answers as long as a busy machine may
// take, where the options do not say.
func start(t testing.TB, o Options) *Source {
	t.Helper()
	def(&o.Budget, time.Minute)
	s := New(o)
	t.Cleanup(s.Close)
	return s
}

// ask makes a query of a body, with the parts that the gateway's scanner finds.
func ask(t testing.TB, e Asker, kind api.Kind, body string) *Query {
	t.Helper()
	b := []byte(body)
	r, err := api.Scan(b, kind)
	if err != nil {
		t.Fatal(err)
	}
	return &Query{
		Pool: "p", Kind: kind, Model: r.Model, Body: b, Prompt: r.Prompt, Tools: r.Tools, Lead: r.Lead, Salt: r.CacheSalt,
		Space:  kv.KeySpace{Block: 16},
		Engine: func() (Engine, bool) { return Engine{URL: "http://e", Client: e}, e != nil },
	}
}

// talk is the body of a chat: user and assistant in turn, after a system prompt.
func talk(texts ...string) string {
	roles := []string{"system", "user", "assistant"}
	var messages []map[string]string
	for i, text := range texts {
		role := roles[0]
		if i > 0 {
			role = roles[2-i%2]
		}
		messages = append(messages, map[string]string{"role": role, "content": text})
	}
	b, err := json.Marshal(map[string]any{"model": "m", "stream": true, "temperature": 0.5, "messages": messages})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// want returns the keys of a body as letters makes its tokens.
func want(body string) ([]kv.Key, int) {
	tokens := letters([]byte(body))
	return kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, tokens, nil), len(tokens)
}

func check(t *testing.T, s *Source, q *Query, how How, reason Reason) Result {
	t.Helper()
	before := []kv.Key{7}
	r := s.Keys(t.Context(), q, before)
	if r.How != how || r.Reason != reason {
		t.Fatalf("keys had by %v (%v), want %v (%v)", r.How, r.Reason, how, reason)
	}
	if len(r.Keys) == 0 || r.Keys[0] != 7 {
		t.Fatal("what was in dst is gone")
	}
	r.Keys = r.Keys[1:]
	if how > HowPrefix && q.Space.Mode == kv.KeysMapped && q.Kind == api.Chat {
		keys, n := want(string(q.Body))
		if d := cmp.Diff(keys, r.Keys); d != "" || r.Tokens != n {
			t.Fatalf("%d tokens, want %d; keys (-want +got):\n%s", r.Tokens, n, d)
		}
	}
	return r
}

const short = 50 * time.Millisecond

const sentence = "Water comes down the pipe and turns the wheel. "

func TestAsksOnceForAPrompt(t *testing.T) {
	e := newOracle()
	s := start(t, Options{})
	q := ask(t, e, api.Chat, talk(sentence, sentence))
	check(t, s, q, HowEngine, ReasonNone)
	check(t, s, q, HowCache, ReasonNone)
	// Written with other spaces between messages, and with other sampling.
	body := strings.Replace(talk(sentence, sentence), `},{`, "} ,\n {", 1)
	check(t, s, ask(t, e, api.Chat, strings.Replace(body, "0.5", "0.7", 1)), HowCache, ReasonNone)
	if got := e.asked(); len(got) != 1 || got[0] != "/v1/chat/completions/render" {
		t.Errorf("asked %q", got)
	}
	if st := s.Status(); st.By[HowCache] != 2 || st.By[HowEngine] != 1 || st.Answers.Count() != 1 || st.Cache.Hits != 2 || st.Calls != 0 {
		t.Errorf("status %+v", st)
	}
}

// What changes tokens or keys makes another prompt; what does not, does not.
func TestWhatMakesAPromptAnother(t *testing.T) {
	for member, another := range map[string]bool{
		`"max_tokens":5`: false, `"user":"u"`: false, `"seed":1`: false, `"response_format":{"type":"text"}`: false,
		`"tools":[{"type":"function"}]`: true, `"cache_salt":"s"`: true, `"chat_template_kwargs":{"enable_thinking":false}`: true,
		`"add_generation_prompt":false`: true, `"tool_choice":"none"`: true, `"tool_choice":null`: false,
	} {
		e := newOracle()
		s := start(t, Options{})
		body := talk(sentence, sentence)
		s.Keys(t.Context(), ask(t, e, api.Chat, body), nil)
		r := s.Keys(t.Context(), ask(t, e, api.Chat, `{`+member+`,`+body[1:]), nil)
		if (r.How == HowEngine) != another {
			t.Errorf("%s: keys had by %v", member, r.How)
		}
		if another && !strings.Contains(member, "salt") && !strings.Contains(e.bodies[1], member) {
			t.Errorf("%s was not passed on: %s", member, e.bodies[1])
		}
	}
}

func TestQuestion(t *testing.T) {
	for _, c := range []struct {
		kind api.Kind
		body string
		want string
	}{
		{api.Chat, `{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[1],"n":2}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[1],"add_generation_prompt":true}`},
		{api.Completion, `{"model":"m","prompt":["hi"],"add_special_tokens":false}`, `{"model":"m","prompt":"hi","add_special_tokens":false}`},
		{api.Responses, `{"model":"m","instructions":"be \"good\"","input":"hi"}`, `{"model":"m","messages":[{"role":"system","content":"be \"good\""},{"role":"user","content":"hi"}],"add_generation_prompt":true}`},
		{api.Responses, `{"model":"m","input":[{"type":"message","role":"user","content":"hi"}]}`, `{"model":"m","messages":[{"role":"user","content":"hi"}],"add_generation_prompt":true}`},
		{api.Messages, `{"model":"x","max_tokens":5,"system":"be","messages":[{"role":"user","content":"hi"}]}`, `{"model":"x","messages":[{"role":"system","content":"be"},{"role":"user","content":"hi"}],"add_generation_prompt":true}`},
	} {
		e := newOracle()
		if r := start(t, Options{}).Keys(t.Context(), ask(t, e, c.kind, c.body), nil); r.How != HowEngine {
			t.Errorf("%s: %v (%v)", c.body, r.How, r.Reason)
		} else if e.bodies[0] != c.want {
			t.Errorf("%s\nasked %s\nwant  %s", c.body, e.bodies[0], c.want)
		}
	}
}

func TestWithoutTokens(t *testing.T) {
	long := "[" + strings.Repeat("1,", 40) + "1]"
	for _, c := range []struct {
		kind   api.Kind
		body   string
		reason Reason
	}{
		{api.Embeddings, `{"model":"m","input":"x"}`, ReasonKind},
		{api.Completion, `{"model":"m","prompt":["a","b"]}`, ReasonSeveral},
		{api.Completion, `{"model":"m","prompt":[[1,2],[3]]}`, ReasonSeveral},
		{api.Completion, `{"model":"m","prompt":[]}`, ReasonKind},
		{api.Completion, `{"model":"m","prompt":[[]]}`, ReasonKind},
		{api.Completion, `{"model":"m","prompt":[[[1]]]}`, ReasonKind},
		{api.Completion, `{"model":"m","prompt":"a","suffix":"b"}`, ReasonKind},
		{api.Completion, `{"model":"m","prompt":[1,-2]}`, ReasonLong},
		{api.Completion, `{"model":"m","prompt":` + long + `}`, ReasonLong},
		{api.Completion, `{"model":"m","prompt":"` + strings.Repeat("x", 41) + `"}`, ReasonLong},
		{api.Responses, `{"model":"m","input":[{"type":"reasoning"}]}`, ReasonKind},
		{api.Responses, `{"model":"m","input":"x","previous_response_id":"r"}`, ReasonKind},
		{api.Chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, ReasonMedia},
	} {
		e := newOracle()
		e.answer = func(_ string, body []byte) (int, string) {
			if c.reason == ReasonMedia {
				return 200, `{"token_ids":[1,2,3]}`
			}
			return render("", body)
		}
		if r := start(t, Options{MaxTokens: 40}).Keys(t.Context(), ask(t, e, c.kind, c.body), nil); r.How != HowNone || r.Reason != c.reason {
			t.Errorf("%.80s: %v (%v), want %v", c.body, r.How, r.Reason, c.reason)
		}
	}
}

func TestTokenIdsAreNotAskedFor(t *testing.T) {
	var ids []uint32
	for i := range uint32(40) {
		ids = append(ids, i*7919)
	}
	list, _ := json.Marshal(ids)
	for _, prompt := range []string{string(list), "[" + string(list) + "]"} {
		q := ask(t, nil, api.Completion, `{"model":"m","prompt":`+prompt+`,"cache_salt":"s\u0061"}`)
		r := check(t, start(t, Options{}), q, HowGiven, ReasonNone)
		if w := kv.ChainTokens(nil, kv.TokenSeed(nil, []byte("sa")), 16, ids, nil); !slices.Equal(w, r.Keys) || r.Tokens != 40 {
			t.Errorf("%d tokens, keys %x, want %x", r.Tokens, r.Keys, w)
		}
	}
}

func TestKeysOfTheEngine(t *testing.T) {
	e := newOracle()
	q := ask(t, e, api.Chat, talk(sentence, sentence))
	q.Space, q.Block, q.Adapter, q.Form = kv.KeySpace{Mode: kv.KeysDirect}, 32, "a", kv.ExtraTagged
	r := check(t, start(t, Options{}), q, HowEngine, ReasonNone)
	var want []kv.Key
	for _, d := range kv.NewHasher(kv.VLLMRoot(kv.VLLMUnseeded), 32).Chain(nil, letters(q.Body), &kv.Extras{Adapter: "a", Form: kv.ExtraTagged}) {
		want = append(want, d.Low())
	}
	if !slices.Equal(want, r.Keys) || len(want) == 0 {
		t.Errorf("keys %x, want %x", r.Keys, want)
	}
}

func TestMediaAreKeyedByTheirHashes(t *testing.T) {
	e := newOracle()
	e.answer = func(string, []byte) (int, string) {
		ids, _ := json.Marshal(make([]int, 64))
		return 200, `{"request_id":"r","token_ids":` + string(ids) + `,"features":{"mm_hashes":{"image":["aa","bb"]},"mm_placeholders":{"image":[{"offset":20,"length":4},{"offset":40,"length":4}]}}}`
	}
	q := ask(t, e, api.Chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`)
	r := s64(t, q)
	x := kv.Extras{Media: []kv.Media{{ID: "aa", Offset: 20, Length: 4}, {ID: "bb", Offset: 40, Length: 4}}}
	if w := kv.ChainTokens(nil, kv.TokenSeed(nil, nil), 16, make([]uint32, 64), &x); !slices.Equal(w, r.Keys) {
		t.Errorf("keys %x, want %x", r.Keys, w)
	}
}

func s64(t *testing.T, q *Query) Result {
	t.Helper()
	r := start(t, Options{}).Keys(t.Context(), q, nil)
	if r.How != HowEngine || r.Tokens != 64 {
		t.Fatalf("%v (%v), %d tokens", r.How, r.Reason, r.Tokens)
	}
	return r
}

func TestEqualPromptsShareACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		e.delay = 20 * time.Millisecond
		s := start(t, Options{})
		q := ask(t, e, api.Chat, talk(sentence, sentence))
		for range 10 {
			go func() {
				if r := s.Keys(t.Context(), q, nil); r.How != HowEngine {
					t.Errorf("%v (%v)", r.How, r.Reason)
				}
			}()
		}
		synctest.Wait()
		if st := s.Status(); st.Calls != 1 || len(e.asked()) != 1 {
			t.Errorf("%d calls for equal prompts", st.Calls)
		}
		time.Sleep(time.Second)
	})
}

func TestBudgetEndsTheWaitNotTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		e.delay = 200 * time.Millisecond
		s := start(t, Options{Budget: 30 * time.Millisecond})
		q := ask(t, e, api.Chat, talk(sentence, sentence))
		begin := time.Now()
		check(t, s, q, HowNone, ReasonBudget)
		if took := time.Since(begin); took != 30*time.Millisecond {
			t.Errorf("waited %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if r := s.Keys(ctx, q, nil); r.Reason != ReasonGone {
			t.Errorf("client left: %v", r.Reason)
		}
		time.Sleep(time.Second)
		check(t, s, q, HowCache, ReasonNone)
		if n := len(e.asked()); n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		e.delay = time.Hour
		s := start(t, Options{Budget: short, MaxCalls: 2, Timeout: 3 * time.Second})
		for i, reason := range []Reason{ReasonBudget, ReasonBudget, ReasonBusy} {
			check(t, s, ask(t, e, api.Chat, talk(sentence, fmt.Sprint(i))), HowNone, reason)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := s.Status().Calls; n != 0 {
			t.Errorf("%d calls outlive their timeout", n)
		}
		check(t, s, ask(t, e, api.Chat, talk(sentence, "3")), HowNone, ReasonBudget)
	})
}

func TestNextTurnGoesOnFromTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		s := start(t, Options{Budget: short})
		first := talk(sentence, sentence)
		keys, _ := want(first)
		check(t, s, ask(t, e, api.Chat, first), HowEngine, ReasonNone)
		e.set(time.Second, render)
		second := ask(t, e, api.Chat, talk(sentence, sentence, "Yes.", sentence))
		if r := check(t, s, second, HowPrefix, ReasonBudget); !slices.Equal(r.Keys, keys) {
			t.Errorf("keys %x, want %x", r.Keys, keys)
		}
		time.Sleep(2 * time.Second)
		check(t, s, second, HowCache, ReasonNone)
		if st := s.Status(); st.Cache.Grown != 1 || st.Cache.Parted != 0 {
			t.Errorf("cache %+v", st.Cache)
		}
	})
}

// A template that drops thoughts makes the next turn part from the last one's
// end; those keys are then not used for others.
func TestTurnsThatPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		s := start(t, Options{Budget: short})
		first := talk(strings.Repeat(sentence, 4), sentence)
		e.answer = func(_ string, body []byte) (int, string) {
			ids := append(letters(body), slices.Repeat([]uint32{2000}, 40)...)
			b, _ := json.Marshal(map[string]any{"token_ids": ids})
			return 200, string(b)
		}
		long := s.Keys(t.Context(), ask(t, e, api.Chat, first), nil)
		e.answer = render
		second := talk(strings.Repeat(sentence, 4), sentence, "Yes.", sentence)
		keys := check(t, s, ask(t, e, api.Chat, second), HowEngine, ReasonNone).Keys
		e.set(time.Second, render)
		third := check(t, s, ask(t, e, api.Chat, talk(strings.Repeat(sentence, 4), sentence, "No.", sentence)), HowPrefix, ReasonBudget).Keys
		if n := len(third); n == 0 || n >= len(long.Keys) || !slices.Equal(third, keys[:n]) {
			t.Errorf("%d of %d keys are used, of which %d are shared", n, len(long.Keys), len(third))
		}
		if st := s.Status(); st.Cache.Parted != 1 {
			t.Errorf("cache %+v", st.Cache)
		}
	})
}

// Two conversations with the same system prompt show what it is in keys.
func TestConversationsShareTheirSystemPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		s := start(t, Options{Budget: short})
		system := strings.Repeat(sentence, 10)
		one := check(t, s, ask(t, e, api.Chat, talk(system, "one "+sentence)), HowEngine, ReasonNone).Keys
		e.set(time.Second, render)
		check(t, s, ask(t, e, api.Chat, talk(system, "two "+sentence)), HowNone, ReasonBudget) // not known how far
		time.Sleep(2 * time.Second)
		r := check(t, s, ask(t, e, api.Chat, talk(system, "three "+sentence)), HowPrefix, ReasonBudget)
		if n := (len("{system:}{user:") + len(system)) / 16; len(r.Keys) != n || !slices.Equal(r.Keys, one[:n]) {
			t.Errorf("%d keys, want the %d of the system prompt", len(r.Keys), n)
		}
	})
}

func TestCircuitOpensAndTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		e.answer = func(string, []byte) (int, string) { return 0, "" }
		s := start(t, Options{Budget: short})
		n := 0
		next := func() *Query { n++; return ask(t, e, api.Chat, talk(fmt.Sprint(n), sentence)) }
		for range window / 2 {
			check(t, s, next(), HowNone, ReasonFailed)
		}
		state := func() string { return s.Status().Pools[0].Circuit }
		for range 5 {
			check(t, s, next(), HowNone, ReasonOpen)
		}
		if e.asked(); state() != "open" {
			t.Fatalf("circuit %s", state())
		}
		time.Sleep(firstWait)
		check(t, s, next(), HowNone, ReasonFailed) // the trial
		check(t, s, next(), HowNone, ReasonOpen)
		time.Sleep(firstWait)
		check(t, s, next(), HowNone, ReasonOpen) // waits twice as long now
		time.Sleep(firstWait)
		// Too slow is no better than failing.
		e.set(time.Second, render)
		check(t, s, next(), HowNone, ReasonBudget)
		check(t, s, next(), HowNone, ReasonOpen) // one tries at a time
		time.Sleep(time.Second)
		check(t, s, next(), HowNone, ReasonOpen)
		e.set(0, render)
		time.Sleep(4 * firstWait)
		check(t, s, next(), HowEngine, ReasonNone)
		check(t, s, next(), HowEngine, ReasonNone)
		if state() != "closed" {
			t.Errorf("circuit %s", state())
		}
	})
}

func TestAsksInTheWayTheEngineKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newOracle()
		e.answer = func(path string, body []byte) (int, string) {
			if path != "/tokenize" {
				return 404, `{"detail":"Not Found"}`
			}
			ids := letters(body)
			b, _ := json.Marshal(map[string]any{"count": len(ids), "max_model_len": 8192, "tokens": ids, "token_strs": nil})
			return 200, string(b)
		}
		s := start(t, Options{})
		n := 0
		next := func() *Query { n++; return ask(t, e, api.Chat, talk(fmt.Sprint(n), sentence)) }
		expect := func(paths ...string) {
			t.Helper()
			if d := cmp.Diff(paths, e.asked()); d != "" {
				t.Errorf("asked (-want +got):\n%s", d)
			}
		}
		check(t, s, next(), HowEngine, ReasonNone)
		expect("/v1/chat/completions/render", "/tokenize")
		check(t, s, next(), HowEngine, ReasonNone)
		expect("/tokenize")
		time.Sleep(rememberWay + time.Second)
		check(t, s, next(), HowEngine, ReasonNone)
		expect("/v1/chat/completions/render", "/tokenize")
		e.answer = func(string, []byte) (int, string) { return 404, "404 page not found" }
		check(t, s, next(), HowNone, ReasonUnspoken)
		expect("/tokenize")
		check(t, s, next(), HowNone, ReasonUnspoken)
		expect()
		if st := s.Status(); st.Pools[0].Asked["none"] != 1 {
			t.Errorf("status %+v", st.Pools)
		}
	})
}

func TestRefusals(t *testing.T) {
	e := newOracle()
	s := start(t, Options{})
	n := 0
	next := func() *Query { n++; return ask(t, e, api.Chat, talk(fmt.Sprint(n), sentence)) }
	e.answer = func(string, []byte) (int, string) { return 404, `{"error":{"message":"The model m does not exist."}}` }
	check(t, s, next(), HowNone, ReasonRefused)
	e.answer = func(string, []byte) (int, string) { return 422, `{"detail":"prompt: field required"}` }
	for range manyRefusals - 1 {
		check(t, s, next(), HowNone, ReasonRefused)
	}
	e.asked()
	check(t, s, next(), HowNone, ReasonRefused)
	if got := e.asked(); len(got) != 1 || got[0] != "/tokenize" {
		t.Errorf("after %d refusals asked %q", manyRefusals, got)
	}
	if st := s.Status(); st.Pools[0].Circuit != "closed" {
		t.Error("what clients got wrong has opened the circuit")
	}
}

func TestNobodyToAsk(t *testing.T) {
	s := start(t, Options{})
	q := ask(t, nil, api.Chat, talk(sentence))
	check(t, s, q, HowNone, ReasonNoEngine)
	s.Close()
	check(t, s, q, HowNone, ReasonBusy)
}
