package workload

import (
	"math"
	"time"
)

// Bounds of what a load stage may ask for.
const (
	maxRate     = 1e6        // requests per second
	minRate     = 1e-6       // one request in twelve days
	maxStage    = 31_536_000 // seconds, a year
	maxInFlight = 1 << 20
)

func parseLoad(root *object, s *Spec) LoadSpec {
	out := LoadSpec{Kind: ArrivalConstant, Pause: time.Second}
	o := root.object("load")
	if o == nil {
		return out
	}
	kind := o.choice("constant", "type", "constant", "poisson", "concurrent", "trace_replay", "trace_session_replay")
	out.Kind = ArrivalKind(kind)
	if kind == "trace_replay" || kind == "trace_session_replay" {
		o.p.add(o.at("type"), "not supported: replay a trace with --trace FILE")
		out.Kind = ArrivalConstant
	}
	out.Pause = seconds(o.float(1, 0, maxStage, "interval"))
	out.Timeout = seconds(o.float(0, 0, maxStage, "request_timeout"))
	out.Seed = uint64(o.int(0, 0, math.MaxInt64, "base_seed"))
	out.Stages = parseStages(o, out.Kind)
	o.refuse("list the stages", "sweep")
	o.refuse("one model per run", "lora_traffic_split")
	o.refuse("replay a trace with --trace FILE", "trace")
	if n := o.int(0, 0, maxStage, "request_retries"); n > 0 {
		o.p.add(o.at("request_retries"), "not supported: a failed request is counted, never sent again")
	}
	s.ignore(o, "num_workers", "worker_max_concurrency", "worker_max_tcp_connections", "circuit_breakers",
		"request_retry_backoff_sec", "stage_teardown_grace_seconds")
	o.close()
	return out
}

func parseStages(load *object, kind ArrivalKind) []Stage {
	_, v := load.get("stages")
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		load.p.add(load.at("stages"), "want a list, got %s", kindOf(v))
		return nil
	}
	var out []Stage
	for i, item := range list {
		o := load.child(load.at("stages")+index(i), item)
		if o == nil {
			continue
		}
		st := Stage{}
		if kind == ArrivalClosed {
			st.Concurrency = o.int(0, 1, maxInFlight, "concurrency_level")
			st.Requests = o.int(0, 1, math.MaxInt32, "num_requests")
			o.need(st.Concurrency != 0, "concurrency_level")
			o.need(st.Requests != 0, "num_requests")
			o.refuse("a concurrent stage has no rate", "rate", "duration")
		} else {
			st.Rate = o.float(0, minRate, maxRate, "rate")
			st.Duration = seconds(o.float(0, 0, maxStage, "duration"))
			o.need(st.Rate != 0, "rate")
			o.need(st.Duration != 0, "duration")
			o.refuse("it belongs to load type concurrent", "concurrency_level", "num_requests")
		}
		o.close()
		out = append(out, st)
	}
	return out
}

// need reports a field without which the object makes no sense. A field that
// is present but wrong has been reported already.
func (o *object) need(have bool, name string) {
	if !have && o.fields[name] == nil {
		o.p.add(o.at(name), "missing")
	} else if n, ok := o.fields[name].(interface{ Float64() (float64, error) }); ok && !have {
		if f, err := n.Float64(); err == nil && f == 0 {
			o.p.add(o.at(name), "must be above 0")
		}
	}
}
