package workload

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"penstock.dev/penstock/internal/stat"
)

// Spec is a load described in inference-perf's YAML shape: what is asked
// (data), when (load), how (api, server), and what counts as good (report).
// Fields that the file leaves out have inference-perf's defaults, except that
// answers are streamed unless the file says otherwise.
type Spec struct {
	API    APISpec
	Server ServerSpec
	Load   LoadSpec
	Data   DataSpec

	// Goodput holds the targets of report.goodput by metric: ttft, tpot, e2e.
	Goodput map[string]time.Duration

	// Ignored lists the paths of known fields that have no meaning here.
	Ignored []string
}

// APISpec says how requests are sent.
type APISpec struct {
	Chat          bool              // chat completions instead of completions
	Streaming     bool              // server-sent events
	Headers       map[string]string // added to every request
	SessionHeader string            // name of the header that carries the session; empty for none
}

// ServerSpec says whom to send to. Empty fields are left to the caller.
type ServerSpec struct {
	URL, Model, APIKey string
	IgnoreEOS          bool // ask for exactly the wanted number of output tokens
}

// LoadSpec says when requests are sent.
type LoadSpec struct {
	Kind    ArrivalKind
	Stages  []Stage       // may be empty: then the caller must say
	Pause   time.Duration // between stages
	Timeout time.Duration // per request; 0 for the caller's default
	Seed    uint64        // 0 when the file has none
}

// DataSpec says what is asked: exactly one of its fields is set.
type DataSpec struct {
	Random        *Random
	SharedPrefix  *SharedPrefix
	Conversations *Conversations
	Seed          uint64 // of the data section; 0 when it has none
}

// maxTokens bounds every length a file may ask for; longer prompts would be
// typing errors.
const maxTokens = 16 << 20

// ParseSpec reads a workload file. It is strict: unknown fields, wrong types
// and values out of range are refused, all of them at once with their paths.
func ParseSpec(yamlText []byte) (*Spec, error) {
	p := &problems{}
	root, err := parseYAML(yamlText, p)
	if err != nil {
		return nil, err
	}
	s := &Spec{}
	s.API = parseAPI(root)
	s.Server = parseServer(root, s)
	s.Load = parseLoad(root, s)
	s.Data = parseData(root)
	s.Goodput = parseReport(root, s)
	s.ignore(root, "tokenizer", "metrics", "storage", "circuit_breakers")
	root.close()
	if err := p.err(); err != nil {
		return nil, fmt.Errorf("workload file:\n%w", err)
	}
	return s, nil
}

// Source returns the requests that the file describes, at the stages and by the
// arrival process of load, which need not be the file's own.
func (s *Spec) Source(load LoadSpec, seed uint64) Source {
	return s.Data.Source(load, seed)
}

// Source returns the described requests at the given load. The seed is mixed
// with the data section's own.
func (d DataSpec) Source(load LoadSpec, seed uint64) Source {
	a := NewArrivals(load.Kind, load.Stages, load.Pause, stat.NewRand(seed, "arrivals"))
	seed = mix(seed, d.Seed)
	switch {
	case d.SharedPrefix != nil:
		return d.SharedPrefix.Source(a, seed)
	case d.Conversations != nil:
		return d.Conversations.Source(a, seed)
	default:
		return d.Random.Source(a, seed)
	}
}

// ignore notes which of the named fields are present.
func (s *Spec) ignore(o *object, names ...string) {
	for _, n := range names {
		if _, v := o.get(n); v != nil {
			s.Ignored = append(s.Ignored, o.at(n))
		}
	}
}

// parseAPI accepts both the mapping and the older plain word.
func parseAPI(root *object) APISpec {
	out := APISpec{Streaming: true}
	if word, ok := root.fields["api"].(string); ok {
		root.get("api")
		out.Chat = word == "chat"
		if word != "chat" && word != "completion" {
			root.p.add("api", "want completion or chat, got %q", word)
		}
		return out
	}
	o := root.object("api")
	if o == nil {
		return out
	}
	out.Chat = o.choice("completion", "type", "completion", "chat") == "chat"
	out.Streaming = o.bool(true, "streaming")
	out.SessionHeader = o.str("", "session_id_header_key")
	if h := o.object("headers"); h != nil {
		out.Headers = map[string]string{}
		for _, k := range slices.Sorted(maps.Keys(h.fields)) {
			out.Headers[k] = h.str("", k)
		}
	}
	o.refuse("answers are not constrained to a schema", "response_format")
	o.refuse("set targets with report.goodput and headers with headers", "slo_unit", "slo_tpot_header", "slo_ttft_header", "session_token_header_key")
	o.close()
	return out
}

func parseServer(root *object, s *Spec) ServerSpec {
	out := ServerSpec{IgnoreEOS: true}
	o := root.object("server")
	if o == nil {
		return out
	}
	out.URL = o.str("", "base_url")
	out.Model = o.str("", "model_name")
	out.APIKey = o.str("", "api_key")
	out.IgnoreEOS = o.bool(true, "ignore_eos")
	o.refuse("client certificates", "cert_path", "key_path")
	s.ignore(o, "type")
	o.close()
	return out
}

func parseReport(root *object, s *Spec) map[string]time.Duration {
	o := root.object("report")
	if o == nil {
		return nil
	}
	s.ignore(o, "request_lifecycle", "prometheus", "session_lifecycle")
	defer o.close()
	g := o.object("goodput")
	if g == nil {
		return nil
	}
	defer g.close()
	c := g.object("constraints")
	if c == nil {
		return nil
	}
	defer c.close()
	out := map[string]time.Duration{}
	for _, m := range [][2]string{{"ttft", "ttft"}, {"tpot", "tpot"}, {"request_latency", "e2e"}} {
		v := c.float(0, 0, 1e6, m[0])
		if v > 0 {
			out[m[1]] = seconds(v)
		} else if c.fields[m[0]] != nil {
			c.need(false, m[0]) // a target of 0 would be met by nobody, or mean none
		}
	}
	c.refuse("give ttft, tpot or request_latency", "itl", "ntpot")
	return out
}
