package workload

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// realTrace opens a published trace kept beside the repository. Only CI must
// have it.
func realTrace(t *testing.T, name string) *Trace {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "..", "shared", "traces", name))
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must have the published trace: %v", err)
		}
		t.Skipf("published trace not at hand: %v", err)
	}
	defer f.Close()
	tr, err := ReadTrace(f, FormatAuto)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func replay(t interface{ Fatal(...any) }, tr *Trace, o ReplayOptions) []Request {
	r, err := tr.Replay(o)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(All(r))
}

func reuseOf(reqs []Request) *Reuse {
	u := &Reuse{}
	for _, r := range reqs {
		u.Add(r.Prompt)
	}
	return u
}

func TestMooncakeConversationTrace(t *testing.T) {
	tr := realTrace(t, "mooncake_conversation_trace.jsonl")
	if tr.Format != FormatMooncake || len(tr.Rows) != 12031 {
		t.Fatalf("%s, %d rows", tr.Format, len(tr.Rows))
	}
	if tr.Inferred < 3500 || tr.Inferred > 3700 {
		t.Errorf("%d follow-up turns inferred, want about 3,670", tr.Inferred)
	}
	reqs := replay(t, tr, ReplayOptions{})
	checkTurns(t, reqs)
	u := reuseOf(reqs)
	if u.Runs != 288500 || math.Abs(u.RunShare()-0.366) > 0.0005 || math.Abs(u.TokenShare()-0.374) > 0.0005 {
		t.Errorf("%d blocks, reuse %.4f of blocks, %.4f of tokens; want 288500, 0.366, 0.374", u.Runs, u.RunShare(), u.TokenShare())
	}
	// Spread arrivals: no second may carry more than a few times the mean rate.
	perSecond := map[int]int{}
	for _, r := range reqs {
		perSecond[int(r.At.Seconds())]++
	}
	for s, n := range perSecond {
		if n > 12 {
			t.Errorf("%d requests in second %d: a bucket was not spread", n, s)
		}
	}
	slice := replay(t, tr, ReplayOptions{Speed: 10, Duration: time.Minute})
	if n := len(slice); n < 1650 || n > 2200 || slice[n-1].At >= time.Minute {
		t.Errorf("one minute at speed 10: %d requests, last at %v", n, slice[n-1].At)
	}
	double := replay(t, tr, ReplayOptions{Copies: 3})
	checkTurns(t, double)
	v := reuseOf(double)
	if len(double) != 3*12031 || math.Abs(v.RunShare()-u.RunShare()) > 0.02 {
		t.Errorf("3 copies: %d requests, reuse %.4f against %.4f alone", len(double), v.RunShare(), u.RunShare())
	}
}

func TestAzureTrace(t *testing.T) {
	tr := realTrace(t, "azure_2023_conv.csv")
	if tr.Format != FormatAzure || len(tr.Rows) != 19366 {
		t.Fatalf("%s, %d rows", tr.Format, len(tr.Rows))
	}
	reqs := replay(t, tr, ReplayOptions{})
	checkTurns(t, reqs)
	if reuseOf(reqs).HeldRuns != 0 {
		t.Error("prompts of an Azure trace must be unique")
	}
	if r := reqs[1]; r.Input != 396 || r.Output != 109 || r.At.Round(time.Millisecond) != 4315*time.Millisecond {
		t.Errorf("second request: %+v", r)
	}
}

func mooncake(t interface{ Fatal(...any) }, lines ...string) *Trace {
	tr, err := ReadTrace(strings.NewReader(strings.Join(lines, "\n")), FormatAuto)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestMooncakeSharedBlocksAreSharedText(t *testing.T) {
	reqs := replay(t, mooncake(t,
		`{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}`,
		`{"timestamp": 0, "input_length": 1536, "output_length": 0, "hash_ids": [0, 1, 3], "tenant": "a"}`,
	), ReplayOptions{})
	a, b := string(Text(nil, reqs[0].Prompt)), string(Text(nil, reqs[1].Prompt))
	if len(a) != 1100*BytesPerToken || len(b) != 1536*BytesPerToken {
		t.Fatalf("lengths %d, %d", len(a), len(b))
	}
	if shared := 1024 * BytesPerToken; a[:shared] != b[:shared] || a[shared:shared+40] == b[shared:shared+40] {
		t.Error("the prompts must share exactly two blocks")
	}
	if reqs[1].Output != 1 || reqs[1].Tenant != "a" {
		t.Errorf("%+v", reqs[1])
	}
}

func TestBucketsAreSpreadEvenly(t *testing.T) {
	var rows []string
	for _, ms := range []int{0, 0, 0, 3000, 6000, 6000, 60000, 60000} {
		rows = append(rows, fmt.Sprintf(`{"timestamp": %d, "input_length": 1, "output_length": 1}`, ms))
	}
	var got []float64
	for _, r := range replay(t, mooncake(t, rows...), ReplayOptions{Speed: 2}) {
		got = append(got, r.At.Seconds())
	}
	if d := cmp.Diff([]float64{0, 0.5, 1, 1.5, 3, 3.75, 30, 30.75}, got); d != "" {
		t.Error(d)
	}
}

func TestInferredTurns(t *testing.T) {
	row := func(s, in, out int, ids string) string {
		return fmt.Sprintf(`{"timestamp": %d, "input_length": %d, "output_length": %d, "hash_ids": [%s]}`, s*1000, in, out, ids)
	}
	reqs := replay(t, mooncake(t,
		row(0, 1500, 100, "0, 1, 2"),           // opens
		row(9, 1500, 100, "0, 3, 4"),           // another one: shares the preamble only
		row(20, 2000, 300, "0, 1, 5, 6"),       // goes on from 0
		row(30, 1500, 100, "0, 1, 7"),          // 0 asked again: no room for its answer
		row(40, 2600, 10, "0, 1, 5, 8, 9, 10"), // goes on from 2
	), ReplayOptions{})
	var got [][2]int
	for _, r := range reqs {
		got = append(got, [2]int{r.After, r.Turn})
	}
	if d := cmp.Diff([][2]int{{-1, 0}, {-1, 0}, {0, 1}, {-1, 0}, {2, 2}}, got); d != "" {
		t.Error(d)
	}
	if reqs[0].Session != reqs[4].Session || reqs[0].Session == reqs[1].Session {
		t.Error("sessions are joined wrongly")
	}
}

func TestRecordedSessions(t *testing.T) {
	reqs := replay(t, mooncake(t,
		`{"timestamp": 0, "session_id": "a", "input_length": 10, "output_length": 5}`,
		`{"session_id": "a", "delay": 4000, "input_length": 20, "output_length": 5}`,
		`{"timestamp": 1000, "session_id": "b", "input_length": 10, "output_length": 5}`,
		`{"timestamp": 5000, "session_id": "b", "input_length": 30, "output_length": 5}`,
	), ReplayOptions{Speed: 2})
	checkTurns(t, reqs)
	if r := reqs[1]; r.After != 0 || r.Think != 2*time.Second || r.Session != reqs[0].Session {
		t.Errorf("turn with a delay: %+v", r)
	}
	if r := reqs[3]; r.After != 2 || r.Think != 0 || r.At != 2500*time.Millisecond {
		t.Errorf("turn with a time: %+v", r)
	}
}

func TestReadTraceRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "no requests"},
		{"\n \n", "no requests"},
		{"TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"},
		{"a,b,c\n1,2,3\n", "line 1: want the header"},
		{`{"timestamp": 0, "input_length": -1, "output_length": 1}`, "line 1 input_length: want 1.."},
		{`{"timestamp": 0, "input_length": 1, "output_length": -1}`, "line 1 output_length: want 0.."},
		{`{"timestamp": 0, "output_length": 1}`, "line 1 input_length: missing"},
		{`{"input_length": 1, "output_length": 1}`, "line 1 timestamp: missing"},
		{`{"timestamp": -5, "input_length": 1, "output_length": 1}`, "line 1 timestamp: want 0.."},
		{"{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1}\n\n{\"timestamp\": 4, \"input_length\": 1, \"output_length\": 1}", "line 3 timestamp: 4 is before"},
		{`{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}`, "line 1 hash_ids: want 2 ids for 513 tokens"},
		{`{"timestamp": "x", "input_length": 1, "output_length": 1}`, "line 1: timestamp: want float64, got string"},
		{`{"timestamp": 0, "input_length": 1.5, "output_length": 1}`, "line 1: input_length: want int64"},
		{`{"timestamp": 0,`, "line 1: not a JSON object"},
		{`{} {}`, "line 1: more than one"},
		{`{"timestamp": 0, "input_length": 1, "output_length": 1, "delay": -1}`, "line 1 delay"},
		{azureHeader + "\n2023-11-16 18:15:46.6,1\n", "line 2: want 3 fields, got 2"},
		{azureHeader + "\nyesterday,1,1\n", "line 2 TIMESTAMP"},
		{azureHeader + "\n2023-11-16 18:15:46.6,x,1\n", "line 2 ContextTokens: want a number"},
		{azureHeader + "\n2023-11-16 18:15:46.6,1,-1\n", "line 2 GeneratedTokens: want 0.."},
		{azureHeader + "\n2023-11-16 18:15:46.6,1,1\n2023-11-16 18:15:45,1,1\n", "line 3 TIMESTAMP: 2023-11-16 18:15:45 is before"},
		{azureHeader + "\n0001-01-01 00:00:10,1,1\n0200-01-01 00:00:00,1,1\n", "line 3 TIMESTAMP: 0200-01-01 00:00:00 is more than"},
		{"\n2023-11-16 18:15:46.6,1,1\n", "line 2: want the header"},
	} {
		_, err := ReadTrace(strings.NewReader(c.text), FormatAuto)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: error %v, want %q", c.text, err, c.want)
		}
	}
	if _, err := ReadTrace(strings.NewReader("{}"), "csv"); err == nil {
		t.Error("unknown format accepted")
	}
	many := strings.Repeat("{}\n", 1000)
	if _, err := ReadTrace(strings.NewReader(many), FormatAuto); strings.Count(err.Error(), "\n") > 60 {
		t.Error("a thousand problems are told one by one")
	}
	if _, err := ReadTrace(io.MultiReader(strings.NewReader("{"), failing{}), FormatAuto); err == nil {
		t.Error("a failing reader goes unnoticed")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestReplayRefusesBadOptions(t *testing.T) {
	tr := mooncake(t, `{"timestamp": 0, "input_length": 1, "output_length": 1}`)
	for _, o := range []ReplayOptions{{Speed: -1}, {Speed: math.NaN()}, {Speed: math.Inf(1)}, {Copies: 1001}} {
		if _, err := tr.Replay(o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}

// Overlaying copies keeps every copy's own sharing and adds none between them.
func TestCopiesShareNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rows []string
		at := 0
		for i := range rapid.IntRange(1, 30).Draw(t, "rows") {
			at += rapid.IntRange(0, 2).Draw(t, "gap") * 3000
			rows = append(rows, fmt.Sprintf(`{"timestamp": %d, "input_length": 1200, "output_length": 9, "hash_ids": [0, %d, %d]}`,
				at, 1+rapid.IntRange(0, 3).Draw(t, "topic"), 100+i))
		}
		tr := mooncake(t, rows...)
		copies := rapid.IntRange(1, 4).Draw(t, "copies")
		reqs := replay(t, tr, ReplayOptions{Copies: copies, Seed: rapid.Uint64().Draw(t, "seed")})
		checkTurns(t, reqs)
		if len(reqs) != copies*len(rows) {
			t.Fatalf("%d requests, want %d x %d", len(reqs), copies, len(rows))
		}
		// Block 0 of a stretch is the same everywhere in it: each of its ids marks
		// one stretch, and a copy has at most two.
		stretch := map[uint64]uint64{}
		for _, r := range reqs {
			for _, s := range r.Prompt {
				if owner, ok := stretch[s.ID]; ok && owner != r.Prompt[0].ID {
					t.Fatal("a block is shared between copies")
				}
				stretch[s.ID] = r.Prompt[0].ID
			}
		}
		for _, r := range reqs {
			if r.After != NoRequest && reqs[r.After].Prompt[0].ID != r.Prompt[0].ID {
				t.Fatal("a turn waits for another copy's answer")
			}
		}
	})
}

func FuzzReadTrace(f *testing.F) {
	f.Add([]byte(`{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}` + "\n" +
		`{"timestamp": 3000, "input_length": 1, "output_length": 0, "session_id": "a"}` + "\n" +
		`{"session_id": "a", "delay": 1.5, "input_length": 2, "output_length": 7}`))
	f.Add([]byte(azureHeader + "\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109"))
	f.Add([]byte("\ufeff{}"))
	f.Add([]byte(`{"timestamp": 1e300, "input_length": 99999999999999999999}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := ReadTrace(strings.NewReader(string(data)), FormatAuto)
		if err != nil {
			return
		}
		reqs := replay(t, tr, ReplayOptions{Copies: 2, Speed: 3})
		if len(reqs) != 2*len(tr.Rows) {
			t.Fatalf("%d requests from 2 copies of %d rows", len(reqs), len(tr.Rows))
		}
		checkTurns(t, reqs)
	})
}
