package engine

import (
	"bytes"
	"slices"
	"testing"

	"penstock.dev/penstock/internal/fleet"
)

const some = fleet.KnownRunning | fleet.KnownWaiting

// otherDialects are pages in the words of engines other than vLLM.
var otherDialects = []struct {
	name, dialect, text string
	want                fleet.Gauges
}{
	{
		"sglang, two tensor ranks and two data-parallel ones", "sglang",
		"sglang:num_running_reqs{dp_rank=\"0\",tp_rank=\"0\"} 3\nsglang:num_running_reqs{dp_rank=\"0\",tp_rank=\"1\"} 3\nsglang:num_running_reqs{dp_rank=\"1\",tp_rank=\"0\"} 4\n" +
			"sglang:num_queue_reqs{tp_rank=\"0\",priority=\"\"} 5\nsglang:num_queue_reqs{tp_rank=\"0\",priority=\"1\"} 2\nsglang:token_usage 0.5\n" +
			"sglang:max_total_num_tokens 4096\nsglang:page_size 16\n",
		fleet.Gauges{Known: fleet.AllGauges, Running: 7, Waiting: 5, KVUsage: 0.5, KVBlocks: 256, KVBlock: 16},
	},
	{
		"sglang, capacity without a page size counts tokens", "sglang", "sglang:max_total_num_tokens 4096\n",
		fleet.Gauges{Known: fleet.KnownKVCapacity, KVBlocks: 4096, KVBlock: 1},
	},
	{
		"sglang, the usual usage before the other", "sglang", "sglang:full_token_usage 0.9\nsglang:token_usage 0.2\n",
		fleet.Gauges{Known: fleet.KnownKVUsage, KVUsage: 0.2},
	},
	{
		"sglang, cache configuration in labels", "sglang", "sglang:cache_config_info{page_size=\"64\",num_pages=\"100\"} 1\n",
		fleet.Gauges{Known: fleet.KnownKVCapacity, KVBlocks: 100, KVBlock: 64},
	},
	{
		"trtllm", "trtllm",
		"trtllm_num_requests_running 3\ntrtllm_num_requests_waiting{model_name=\"m\"} 1\ntrtllm_kv_cache_utilization 0.25\ntrtllm_kv_cache_max_blocks 900\ntrtllm_kv_cache_tokens_per_block 32\n",
		fleet.Gauges{Known: fleet.AllGauges, Running: 3, Waiting: 1, KVUsage: 0.25, KVBlocks: 900, KVBlock: 32},
	},
	{
		"trtllm, older separator", "trtllm", "trtllm:num_requests_running 3\ntrtllm:num_requests_waiting 0\n",
		fleet.Gauges{Known: some, Running: 3},
	},
	{"llamacpp", "llamacpp", "llamacpp:requests_processing 2\nllamacpp:requests_deferred 6\n", fleet.Gauges{Known: some, Running: 2, Waiting: 6}},
	{
		"llamacpp, older", "llamacpp", "llamacpp:kv_cache_usage_ratio 0.125\nllamacpp:kv_cache_tokens 17\n",
		fleet.Gauges{Known: fleet.KnownKVUsage, KVUsage: 0.125},
	},
	{"ollama has no page", "ollama", "vllm:num_requests_running 1\n", fleet.Gauges{}},
}

func TestReadOtherDialects(t *testing.T) {
	for _, c := range otherDialects {
		d := mustDialect(c.dialect)
		got, ok := d.Read([]byte(c.text))
		if got.Gauges != c.want || ok != (c.want.Known != 0) || got.Missing != d.Gauges()&^c.want.Known {
			t.Errorf("%s: %+v %v, want %+v", c.name, got, ok, c.want)
		}
	}
}

func TestReplacedNamesCountOnce(t *testing.T) {
	for _, text := range []string{
		"vllm:gpu_cache_usage_perc 0.9\nvllm:kv_cache_usage_perc 0.25\n",
		"vllm:kv_cache_usage_perc 0.25\nvllm:gpu_cache_usage_perc 0.9\n",
	} {
		if got, _ := mustDialect("vllm").Read([]byte(text)); got.KVUsage != 0.25 {
			t.Errorf("%q: usage %v, want that of the newer name", text, got.KVUsage)
		}
	}
}

// loraPage has states of three seconds; the newest comes in two parts.
const loraPage = `vllm:lora_requests_info{max_lora="4",running_lora_adapters="new",waiting_lora_adapters=""} 1.795336237e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old,older",waiting_lora_adapters="oldest"} 1.795336234e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="new",waiting_lora_adapters="next, last"} 1.795336237e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.795336200e+09
vllm:num_requests_running 1
`

func adapterSet(slots int, names ...string) fleet.Adapters {
	s := fleet.Adapters{Max: slots}
	for _, n := range names {
		s.Add(fleet.AdapterOf(n))
	}
	return s
}

func TestNewestAdaptersCount(t *testing.T) {
	d := mustDialect("vllm")
	got, _ := d.Read([]byte(loraPage))
	if want := adapterSet(4, "new", "next", "last"); got.Adapters != want {
		t.Errorf("%+v, want %+v", got.Adapters, want)
	}
	if n := testing.AllocsPerRun(20, func() { d.Read([]byte(loraPage)) }); n > 1 { // one for the conversion
		t.Errorf("%v allocations", n)
	}
	raw := capture(t, "llm-d-inference-sim", "metrics-under-load.response.http")
	got, _ = d.Read(raw)
	if want := adapterSet(2, "adapter-a"); got.Adapters != want {
		t.Errorf("recorded: %+v, want %+v", got.Adapters, want)
	}
}

func TestAdaptersAreBounded(t *testing.T) {
	var text bytes.Buffer
	text.WriteString(`vllm:lora_requests_info{max_lora="64",running_lora_adapters="`)
	for i := range 3 * fleet.MaxAdapters {
		text.WriteString(string(rune('a'+i)) + ",")
	}
	text.WriteString("\"} 5\n")
	if got, _ := mustDialect("vllm").Read(text.Bytes()); got.Adapters.Count != fleet.MaxAdapters || got.Adapters.Max != 64 {
		t.Errorf("%+v", got.Adapters)
	}
}

func TestWhatIsMissingHasNames(t *testing.T) {
	got, _ := mustDialect("vllm").Read([]byte("vllm:num_requests_running 1\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n"))
	if names := got.Missing.Names(); !slices.Equal(names, []string{"waiting", "kv-usage", "kv-capacity"}) {
		t.Errorf("missing %v", names)
	}
}
