package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func quick(f *fakeServer, change func(*Options)) Options {
	o := DefaultOptions()
	o.URL, o.Concurrency, o.Requests, o.InputLen, o.OutputLen = f.URL, 4, 20, 50, 8
	o.Timeout = 10 * time.Second
	if change != nil {
		change(&o)
	}
	return o
}

func run(t *testing.T, o Options) (*Report, string) {
	t.Helper()
	var out bytes.Buffer
	r, err := Run(t.Context(), o, Streams{Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	return r, out.String()
}

// warnings are those of a run but for that of being late: a machine that other
// tests keep busy is, and is rightly told so.
func warnings(r *Report) []string {
	return slices.DeleteFunc(slices.Clone(r.Warnings), func(w string) bool { return strings.Contains(w, "itself was late") })
}

func TestRunAgainstAGoodServer(t *testing.T) {
	for _, endpoint := range []string{"completions", "chat"} {
		for _, stream := range []bool{true, false} {
			f := newFakeServer(t)
			r, table := run(t, quick(f, func(o *Options) {
				o.Endpoint, o.Stream, o.APIKey = endpoint, stream, "k"
				o.Header, o.Goodput = map[string]string{"x-team": "blue"}, []string{"ttft:9000"}
			}))
			if r.Requests != (Requests{Sent: 20, Completed: 20}) || len(r.Errors) > 0 || len(warnings(r)) > 0 {
				t.Fatalf("%s: %+v %+v %q", endpoint, r.Requests, r.Errors, warnings(r))
			}
			if want := (Tokens{PromptWanted: 1000, Prompt: 1000, Output: 160}); r.Tokens != want {
				t.Errorf("%s: tokens %+v", endpoint, r.Tokens)
			}
			if r.Cache.Cached != 500 || r.Cache.CachedShare != 0.5 || r.Goodput.Share != 1 {
				t.Errorf("%s: cache %+v, goodput %+v", endpoint, r.Cache, r.Goodput)
			}
			wantITL := 20 * 7
			if !stream {
				wantITL = 0
			}
			if r.Latency.TTFT.Count != 20 || r.Latency.ITL.Count != wantITL || r.Latency.E2E.P50 <= 0 {
				t.Errorf("%s: latency %+v", endpoint, r.Latency)
			}
			b, h := f.bodies[0], f.headers[0]
			if b.Model != "fake/model" || b.MaxTokens != 8 || !b.IgnoreEOS || b.Stream != stream || len(b.text()) != 200 {
				t.Errorf("%s: body %+v", endpoint, b)
			}
			if h.Get("Authorization") != "Bearer k" || h.Get("X-Team") != "blue" || !strings.HasPrefix(h.Get("X-Request-Id"), r.RunID+"-") {
				t.Errorf("%s: headers %v", endpoint, h)
			}
			if f.peak.Load() > 4 {
				t.Errorf("%s: %d requests in flight, want at most 4", endpoint, f.peak.Load())
			}
			for _, want := range []string{"20 sent, 20 completed, 0 failed, 0 corrupted", "50.0 % of prompt tokens", "goodput", "TTFT", "ms"} {
				if !strings.Contains(table, want) {
					t.Errorf("%s: the table does not say %q:\n%s", endpoint, want, table)
				}
			}
		}
	}
}

func TestEveryBreakageIsFound(t *testing.T) {
	for how, kind := range map[string]string{
		"500": "http_500", "reset": errNoAnswer, "cut": errBroken, "close": errBroken, "half": errBroken, "error": errSSE,
		"double": errCorrupt, "lose": errCorrupt, "nodone": errCorrupt, "hang": errTimeout,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t)
			f.broken = func(n int) string { return map[bool]string{true: how}[n%4 == 1] }
			r, table := run(t, quick(f, func(o *Options) { o.Timeout, o.Requests = time.Second, 8 }))
			if r.Requests.Completed != 6 || r.Requests.Failed != 2 || len(r.Errors) != 1 || r.Errors[0].Kind != kind || r.Errors[0].Count != 2 {
				t.Errorf("%+v %+v, want 2 of kind %s", r.Requests, r.Errors, kind)
			}
			if (r.Requests.Corrupted == 2) != (kind == errCorrupt) {
				t.Errorf("%d corrupted", r.Requests.Corrupted)
			}
			if !strings.Contains(table, "error "+kind) {
				t.Errorf("the table hides it:\n%s", table)
			}
		})
	}
}

func TestNoUsageIsNoError(t *testing.T) {
	f := newFakeServer(t)
	f.broken = func(int) string { return "nousage" }
	r, _ := run(t, quick(f, nil))
	if r.Requests.Completed != 20 || r.Tokens.NoUsage != 20 || r.Tokens.Output != 160 || r.Cache.Known || len(warnings(r)) != 1 {
		t.Errorf("%+v %+v %q", r.Requests, r.Tokens, warnings(r))
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.URL, o.Requests, o.Rate = "http://"+l.Addr().String(), 3, 1000
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), o, Streams{Out: &bytes.Buffer{}}); err == nil || !strings.Contains(err.Error(), "penstock up") {
		t.Errorf("without a model: %v", err)
	}
	o.Model = "m"
	r, _ := run(t, o)
	if len(r.Errors) != 1 || r.Errors[0].Kind != errConnect || r.Errors[0].Count != 3 {
		t.Errorf("%+v", r.Errors)
	}
}

func TestTheDialledAddressIsCheckedToo(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Skip("no IPv4 here")
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	addrs, _ := net.InterfaceAddrs()
	i := slices.IndexFunc(addrs, func(a net.Addr) bool {
		ip, ok := a.(*net.IPNet)
		return ok && ip.IP.To4() != nil && !ip.IP.IsLoopback()
	})
	if i < 0 {
		t.Skip("this machine has no address but loopback")
	}
	url := "http://" + net.JoinHostPort(addrs[i].(*net.IPNet).IP.String(), port)
	_, err = newClient(&plan{Options: DefaultOptions()}).Get(url)
	if err == nil || !strings.Contains(err.Error(), "--allow-remote") {
		t.Errorf("a connection to %s was made: %v", url, err)
	}
}

func TestSameSeedSendsTheSameRequests(t *testing.T) {
	sent := func(seed uint64) (map[string]bool, Slice) {
		f := newFakeServer(t)
		r, _ := run(t, quick(f, func(o *Options) { o.Seed = seed }))
		texts := map[string]bool{}
		for i := range f.bodies {
			texts[f.bodies[i].text()] = true
		}
		return texts, r.Slice
	}
	a, sa := sent(1)
	b, sb := sent(1)
	c, sc := sent(2)
	if !maps.Equal(a, b) || sa != sb || len(a) != 20 {
		t.Errorf("two runs of one seed differ: %+v %+v", sa, sb)
	}
	if maps.Equal(a, c) || sa.Fingerprint == sc.Fingerprint {
		t.Error("two seeds send the same")
	}
}

func TestFiles(t *testing.T) {
	f := newFakeServer(t)
	f.broken = func(n int) string { return map[bool]string{true: "500"}[n == 0] }
	dir := t.TempDir()
	o := quick(f, func(o *Options) {
		o.JSON, o.Output, o.PerRequest = true, filepath.Join(dir, "r.json"), filepath.Join(dir, "q.jsonl")
	})
	r, out := run(t, o)
	saved, err := os.ReadFile(o.Output)
	if err != nil || string(saved) != out {
		t.Errorf("--output and --json differ: %v", err)
	}
	var back Report
	if err := json.Unmarshal(saved, &back); err != nil {
		t.Fatal(err)
	}
	r.Config.JSON, r.Config.Output, r.Config.PerRequest = false, "", "" // where it went is no part of it
	if d := cmp.Diff(*r, back); d != "" {
		t.Error(d)
	}
	lines, err := os.ReadFile(o.PerRequest)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for line := range strings.Lines(string(lines)) {
		var q Result
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			t.Fatal(err)
		}
		seen[q.Index] = true
		if (q.Error == "") != (q.TextHash != "" && q.Output == 8 && q.TTFT > 0 && q.E2E >= q.TTFT && q.Good) {
			t.Errorf("%+v", q)
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d requests in the file", len(seen))
	}
	o.PerRequest = filepath.Join(dir, "missing", "q.jsonl")
	if _, err := Run(t.Context(), o, Streams{Out: &bytes.Buffer{}}); err == nil {
		t.Error("a file that cannot be made goes unnoticed")
	}
}

func TestRealAnswersGoIntoLaterTurns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "w.yaml")
	text := `
load: {type: concurrent, stages: [{concurrency_level: 2, num_requests: 12}]}
api: {type: chat, session_id_header_key: x-session}
data:
  type: conversation_replay
  conversation_replay:
    num_conversations: 2
    shared_system_prompt_len: 5
    turns_per_conversation: {type: fixed, mean: 3}
    input_tokens_per_turn: {type: fixed, mean: 4}
    output_tokens_per_turn: {type: fixed, mean: 3}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFakeServer(t)
	o := DefaultOptions()
	o.URL, o.Workload, o.RealAnswers = f.URL, file, true
	r, _ := run(t, o)
	if r.Requests.Completed != 12 {
		t.Fatalf("%+v %+v", r.Requests, r.Errors)
	}
	turns := map[int]int{}
	for i, b := range f.bodies {
		turns[len(b.Messages)]++
		var roles []string
		for _, m := range b.Messages {
			roles = append(roles, m.Role)
			if m.Role == "assistant" && m.Content != " t0 t1 t2" {
				t.Errorf("an answer became %q", m.Content)
			}
		}
		if want := []string{"system", "user", "assistant", "user", "assistant", "user"}[:len(roles)]; !slices.Equal(roles, want) {
			t.Errorf("roles %v", roles)
		}
		if f.headers[i].Get("X-Session") == "" {
			t.Error("no session header")
		}
	}
	if d := cmp.Diff(map[int]int{2: 4, 4: 4, 6: 4}, turns); d != "" {
		t.Error(d)
	}
}

func TestInterruptReportsWhatWasMeasured(t *testing.T) {
	f := newFakeServer(t)
	f.broken = func(n int) string { return map[bool]string{true: "hang"}[n%2 == 1] }
	ctx, cancel := context.WithCancel(t.Context())
	o := quick(f, func(o *Options) { o.Concurrency, o.Rate, o.Requests, o.Grace = 0, 200, 1000, 50*time.Millisecond })
	var out, bar bytes.Buffer
	time.AfterFunc(300*time.Millisecond, cancel)
	r, err := Run(ctx, o, Streams{Out: &out, Err: &bar, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	q := r.Requests
	if !r.Interrupted || q.Completed == 0 || q.Unfinished == 0 || q.Failed != 0 || q.Sent != q.Completed+q.Unfinished || q.Sent >= 1000 {
		t.Errorf("%+v %+v", q, r.Errors)
	}
	if !strings.Contains(out.String(), "(interrupted)") || !strings.Contains(bar.String(), "in flight") {
		t.Errorf("table %q\nprogress %q", out.String(), bar.String())
	}
}

func TestSummaryByHand(t *testing.T) {
	var s series
	for i := 100; i >= 1; i-- {
		s.add(time.Duration(i) * time.Millisecond)
	}
	if d := cmp.Diff(Summary{Count: 100, Mean: 50.5, P50: 50, P90: 90, P99: 99, Max: 100}, s.summary()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(Summary{Count: 1, Mean: 7, P50: 7, P90: 7, P99: 7, Max: 7}, series{7 * time.Millisecond}.summary()); d != "" {
		t.Error(d)
	}
	if (series{}).summary() != (Summary{}) {
		t.Error("an empty series must be all zero")
	}
}

func TestTPOTByHand(t *testing.T) {
	st := newStream()
	st.tokens, st.first = 5, 3*time.Second
	r := Result{intended: time.Second, end: 7 * time.Second}
	r.finish(st, Targets{TPOT: time.Second})
	// From 1 s on: first token at 3 s, end at 7 s, four tokens after the first.
	if r.TTFT != 2000 || r.E2E != 6000 || r.TPOT != 1000 || !r.Good {
		t.Errorf("%+v", r)
	}
	r.finish(st, Targets{TPOT: time.Second, TTFT: 1999 * time.Millisecond})
	if r.Good {
		t.Error("a missed TTFT counts as good")
	}
}

func TestNumbersForPeople(t *testing.T) {
	for got, want := range map[string]string{
		whole(1234567): "1,234,567", whole(12): "12", rate(3.14159): "3.14", rate(31.4159): "31.4", rate(31415.9): "31,416",
		millis(1.25): "1.25", millis(123.46): "123.5", millis(12345.6): "12,346",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if math.Abs(ms(1500*time.Microsecond)-1.5) > 1e-12 {
		t.Error("ms")
	}
}
