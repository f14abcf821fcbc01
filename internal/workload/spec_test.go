package workload

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const sharedYAML = `
load:
  type: poisson
  interval: 0
  stages:
  - {rate: 15, duration: 20}
  - {rate: 30.5, duration: 40}
  num_workers: 4
api:
  type: completion
  streaming: true
  headers: {x-team: blue}
server: {type: vllm, model_name: m, base_url: "http://0.0.0.0:8000", ignore_eos: true}
tokenizer: {pretrained_model_name_or_path: m}
data:
  type: shared_prefix
  shared_prefix:
    num_groups: 150
    num_prompts_per_group: 5
    system_prompt_len: 6000
    question_len: {type: normal, mean: 1200, std_dev: 100, min: 1000, max: 1500}
    output_len: 1000
report:
  request_lifecycle: {summary: true}
  goodput: {constraints: {ttft: 0.5, tpot: 0.05}}
`

func TestParseSpecSharedPrefix(t *testing.T) {
	s, err := ParseSpec([]byte(sharedYAML))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		API:    APISpec{Streaming: true, Headers: map[string]string{"x-team": "blue"}},
		Server: ServerSpec{URL: "http://0.0.0.0:8000", Model: "m", IgnoreEOS: true},
		Load: LoadSpec{Kind: ArrivalPoisson, Stages: []Stage{
			{Rate: 15, Duration: 20 * time.Second}, {Rate: 30.5, Duration: 40 * time.Second},
		}},
		Data: DataSpec{SharedPrefix: &SharedPrefix{
			Groups: 150, PromptsPerGroup: 5, System: Fixed(6000), Output: Fixed(1000),
			Question: Dist{Kind: DistNormal, Mean: 1200, Std: 100, Min: 1000, Max: 1500},
		}},
		Goodput: map[string]time.Duration{"ttft": 500 * time.Millisecond, "tpot": 50 * time.Millisecond},
		Ignored: []string{"server.type", "load.num_workers", "report.request_lifecycle", "tokenizer"},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
}

func TestParseSpecRandomOldSpelling(t *testing.T) {
	s, err := ParseSpec([]byte(`
api: chat
load: {type: concurrent, stages: [{concurrency_level: 8, num_requests: 100}]}
data:
  type: random
  input_distribution: {min: 10, max: 100, mean: 50, std: 10, total_count: 100}
  output_distribution: {type: fixed, mean: 32}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Random{Input: Dist{Kind: DistNormal, Mean: 50, Std: 10, Min: 10, Max: 100}, Output: Dist{Kind: DistFixed, Mean: 32, Min: 32, Max: 32}}
	if d := cmp.Diff(want, s.Data.Random); d != "" {
		t.Error(d)
	}
	if !s.API.Chat || s.Load.Kind != ArrivalClosed || s.Load.Stages[0] != (Stage{Concurrency: 8, Requests: 100}) {
		t.Errorf("%+v %+v", s.API, s.Load)
	}
}

func TestParseSpecConversationDefaults(t *testing.T) {
	s, err := ParseSpec([]byte("data: {type: conversation_replay, conversation_replay: {num_conversations: 2, tool_call_latency_sec: {type: uniform, min: 1, max: 3}}}"))
	if err != nil {
		t.Fatal(err)
	}
	c := s.Data.Conversations
	if c.Slots != 2 || c.SharedSystem != 8359 || c.Turns != Fixed(10) || c.Input != Fixed(512) || c.Output != Fixed(256) || c.MaxModelLen != 225000 {
		t.Errorf("%+v", c)
	}
	load := LoadSpec{Kind: ArrivalConstant, Stages: []Stage{{Rate: 2, Duration: 20 * time.Second}}}
	reqs := slices.Collect(All(s.Source(load, 1)))
	checkTurns(t, reqs)
	if len(reqs) != 40 || reqs[2].Think < time.Second || reqs[2].Think > 3*time.Second {
		t.Errorf("%d requests, third %+v", len(reqs), reqs[2])
	}
}

func TestParseSpecTellsAllProblemsAtOnce(t *testing.T) {
	_, err := ParseSpec([]byte(`
load:
  type: burst
  stages: [{rate: -1, duration: 0}, {duration: 5}, 7]
  sweep: {type: linear}
api: {type: embeddings, streamin: true}
server: {ignore_eos: "yes"}
data:
  type: shared_prefix
  shared_prefix: {num_groups: 1.5, num_unique_system_prompts: 2, question_len: {mean: 5000}}
  conversation_replay: {}
colour: red
`))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`load.type: want one of constant`, `load.stages[0].rate: want 1e-06..1e+06, got -1`, `load.stages[0].duration: must be above 0`,
		`load.stages[1].rate: missing`, `load.stages[2]: want a mapping, got 7`, `load.sweep: not supported`,
		`api.type: want one of completion, chat, got "embeddings"`, `api.streamin: unknown field`, `server.ignore_eos: want true or false, got "yes"`,
		`data.shared_prefix.num_groups: is another spelling`, `data.shared_prefix.question_len.mean: 5000 is outside min..max 10..1024`,
		`data.conversation_replay: belongs to type conversation_replay`, `colour: unknown field; known here: api, circuit_breakers, data`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestParseSpecRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          "",
		"a list":         "- 1",
		"not YAML":       "a: [",
		"doubled key":    "data: {type: random}\ndata: {type: random}",
		"no data":        "load: {}",
		"shareGPT":       "data: {type: shareGPT, path: x}",
		"no lengths":     "data: {type: random}",
		"no room":        "data: {type: conversation_replay, conversation_replay: {max_model_len: 100}}",
		"trace replay":   "load: {type: trace_replay}\n" + randomYAML,
		"two deviations": "data: {type: random, input_distribution: {std: 1, variance: 1}, output_distribution: {}}",
		"min above max":  "data: {type: random, input_distribution: {min: 600, max: 500}, output_distribution: {}}",
	} {
		if _, err := ParseSpec([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

const randomYAML = "data: {type: random, input_distribution: {}, output_distribution: {variance: 400}}\n"

// Whatever parses must also generate, in order and without running away.
func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(sharedYAML))
	f.Add([]byte(randomYAML))
	f.Add([]byte("api: chat\ndata: {type: conversation_replay, conversation_replay: {max_model_len: 9000}}"))
	f.Add([]byte("load: {type: concurrent, stages: [{concurrency_level: 1, num_requests: 2}]}\n" + randomYAML))
	f.Add([]byte("data: {type: shared_prefix, shared_prefix: {enable_multi_turn_chat: true, output_len: {type: lognormal}}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSpec(text)
		if err != nil || (s.Data.SharedPrefix != nil && s.Data.SharedPrefix.Groups*s.Data.SharedPrefix.PromptsPerGroup > 1000) {
			return
		}
		checkTurns(t, slices.Collect(All(&Limit{Source: s.Source(s.Load, 1), Requests: 20})))
	})
}
