package pool

import (
	"encoding/json"
	"fmt"
	"math"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/journal"
	"penstock.dev/penstock/internal/kv"
	"penstock.dev/penstock/internal/perf"
)

// The wire numbers of events. They are part of the journal's format: append
// only.
const (
	codeConfigure = iota + 1
	codeEndpoint
	codeSample
	codeProbed
	codeArrive
	codeLeg
	codeGone
	codeTick
	codeServes
	codeKV
	codeBarred
	codeEncoded
)

// EncodeEvent appends ev to e.
func EncodeEvent(e *journal.Encoder, ev Event) {
	switch ev := ev.(type) {
	case *Configure:
		e.Uint(codeConfigure)
		// Plain data of known types: it cannot fail.
		raw, _ := json.Marshal(ev.Config)
		e.Bytes(raw)
	case *Endpoint:
		e.Uint(codeEndpoint)
		encodeEndpoint(e, ev)
	case *Sample:
		e.Uint(codeSample)
		encodeSample(e, ev)
	case *Serves:
		e.Uint(codeServes)
		e.Uint(uint64(ev.Endpoint))
		e.Uint(uint64(ev.Gen))
		encodeAdapters(e, ev.Adapters)
	case *KV:
		e.Uint(codeKV)
		encodeKV(e, ev)
	case *Barred:
		e.Uint(codeBarred)
		e.Uint(uint64(ev.Endpoint))
		e.Uint(uint64(ev.Gen))
		encodeEndpoints(e, ev.Sources)
	case *Probed:
		e.Uint(codeProbed)
		e.Uint(uint64(ev.Endpoint))
		e.Uint(uint64(ev.Gen))
		e.Bool(ev.OK)
	case *Arrive:
		e.Uint(codeArrive)
		encodeArrive(e, ev)
	case *Leg:
		e.Uint(codeLeg)
		encodeLeg(e, ev)
	case *Encoded:
		e.Uint(codeEncoded)
		e.Uint(uint64(ev.Req))
		e.Int(int64(ev.Attempt))
		e.Uint(uint64(ev.Image))
		e.Uint(uint64(ev.Failure))
	case *Gone:
		e.Uint(codeGone)
		e.Uint(uint64(ev.Req))
	case *Tick:
		e.Uint(codeTick)
	}
}

// DecodeEvent reads an event that EncodeEvent wrote.
func DecodeEvent(d *journal.Decoder) (Event, error) {
	var ev Event
	switch code := d.Uint(); code {
	case codeConfigure:
		c := &Configure{}
		if err := json.Unmarshal(d.Bytes(), &c.Config); err != nil && d.Err() == nil {
			return nil, fmt.Errorf("%w: configuration: %w", journal.ErrDamaged, err)
		}
		ev = c
	case codeEndpoint:
		ev = decodeEndpoint(d)
	case codeSample:
		ev = decodeSample(d)
	case codeServes:
		ev = &Serves{Endpoint: endpointID(d), Gen: gen(d), Adapters: decodeAdapters(d)}
	case codeKV:
		ev = decodeKV(d)
	case codeBarred:
		ev = &Barred{Endpoint: endpointID(d), Gen: gen(d), Sources: decodeEndpoints(d)}
	case codeProbed:
		ev = &Probed{Endpoint: endpointID(d), Gen: gen(d), OK: d.Bool()}
	case codeArrive:
		ev = decodeArrive(d)
	case codeLeg:
		ev = decodeLeg(d)
	case codeEncoded:
		ev = &Encoded{Req: fleet.ReqID(d.Uint()), Attempt: int(d.Int()), Image: decodeImage(d), Failure: fleet.Failure(d.Uint())}
	case codeGone:
		ev = &Gone{Req: fleet.ReqID(d.Uint())}
	case codeTick:
		ev = &Tick{}
	default:
		return nil, fmt.Errorf("%w: unknown event %d", journal.ErrDamaged, code)
	}
	return ev, d.Err()
}

// decodeImage reads the index of an image, which no damage makes one that wraps.
func decodeImage(d *journal.Decoder) int { return int(min(d.Uint(), math.MaxInt32)) }

func endpointID(d *journal.Decoder) fleet.EndpointID { return fleet.EndpointID(d.Uint()) }
func gen(d *journal.Decoder) fleet.Gen               { return fleet.Gen(d.Uint()) }

func encodeEndpoints(e *journal.Encoder, list []fleet.EndpointID) {
	e.Uint(uint64(len(list)))
	for _, id := range list {
		e.Uint(uint64(id))
	}
}

func decodeEndpoints(d *journal.Decoder) []fleet.EndpointID {
	var list []fleet.EndpointID
	for range d.Len(1) {
		list = append(list, endpointID(d))
	}
	return list
}

func encodeEndpoint(e *journal.Encoder, ev *Endpoint) {
	e.Uint(uint64(ev.Endpoint))
	e.Uint(uint64(ev.Gen))
	e.Uint(uint64(ev.Change))
	e.Uint(uint64(ev.Role))
	e.Tokens(ev.Limits.MaxModelLen)
	e.Tokens(ev.Limits.KVTokens)
	e.Tokens(ev.Limits.BlockTokens)
	e.Int(int64(ev.Limits.MaxSeqs))
	e.Tokens(ev.Limits.BudgetTokens)
	e.Uint(ev.Variant)
	e.Float(ev.Step.Base)
	e.Float(ev.Step.PerSeq)
	e.Float(ev.Step.PerKV)
	e.Float(ev.Step.PerPrompt)
	e.Float(ev.Step.PerPair)
	e.Float(ev.Step.Experts)
	e.Float(ev.Step.Touch)
	e.Float(ev.Step.Shadow)
	e.Float(ev.Step.PerRequest)
	e.Fixed(ev.Connector)
	e.Bool(ev.Pulls)
	for _, l := range [...]fleet.Link{ev.Wire, ev.Links.CPU, ev.Links.Disk, ev.Links.Shared} {
		e.Float(l.Latency)
		e.Float(l.PerToken)
	}
}

func decodeEndpoint(d *journal.Decoder) *Endpoint {
	return &Endpoint{
		Endpoint: endpointID(d), Gen: gen(d), Change: Change(d.Uint()), Role: fleet.Role(d.Uint()),
		Limits: fleet.Limits{
			MaxModelLen: d.Tokens(), KVTokens: d.Tokens(), BlockTokens: d.Tokens(), MaxSeqs: int(d.Int()), BudgetTokens: d.Tokens(),
		},
		Variant:   d.Uint(),
		Step:      perf.Step{Base: d.Float(), PerSeq: d.Float(), PerKV: d.Float(), PerPrompt: d.Float(), PerPair: d.Float(), Experts: d.Float(), Touch: d.Float(), Shadow: d.Float(), PerRequest: d.Float()},
		Connector: d.Fixed(), Pulls: d.Bool(), Wire: decodeLink(d),
		Links: fleet.Links{CPU: decodeLink(d), Disk: decodeLink(d), Shared: decodeLink(d)},
	}
}

func decodeLink(d *journal.Decoder) fleet.Link {
	return fleet.Link{Latency: d.Float(), PerToken: d.Float()}
}

func encodeKV(e *journal.Encoder, ev *KV) {
	e.Uint(uint64(ev.Endpoint))
	e.Uint(uint64(ev.Gen))
	e.Uint(uint64(ev.Update.State))
	e.Bool(ev.Update.Whole)
	e.Bool(ev.Update.Ended)
	e.Uint(uint64(len(ev.Update.Changes)))
	for i := range ev.Update.Changes {
		c := &ev.Update.Changes[i]
		e.Uint(uint64(c.Kind))
		e.Uint(uint64(c.Tier))
		e.Fixed(uint64(c.Parent))
		encodeKeys(e, c.Keys)
	}
}

func decodeKV(d *journal.Decoder) *KV {
	ev := &KV{
		Endpoint: endpointID(d), Gen: gen(d),
		Update: kv.Update{State: kv.FeedState(d.Uint()), Whole: d.Bool(), Ended: d.Bool()},
	}
	const leastChange = 11 // kind, tier, parent, number of keys
	for range d.Len(leastChange) {
		ev.Update.Changes = append(ev.Update.Changes, kv.Change{
			Kind: kv.ChangeKind(d.Uint()), Tier: kv.Tier(min(d.Uint(), uint64(kv.TierOther))), Parent: kv.Key(d.Fixed()), Keys: decodeKeys(d),
		})
	}
	return ev
}

func encodeKeys(e *journal.Encoder, keys []kv.Key) {
	e.Uint(uint64(len(keys)))
	for _, k := range keys {
		e.Fixed(uint64(k))
	}
}

func decodeKeys(d *journal.Decoder) []kv.Key {
	const keyBytes = 8
	var keys []kv.Key
	for range d.Len(keyBytes) {
		keys = append(keys, kv.Key(d.Fixed()))
	}
	return keys
}

func encodeSample(e *journal.Encoder, ev *Sample) {
	e.Uint(uint64(ev.Endpoint))
	e.Uint(uint64(ev.Gen))
	e.Int(int64(ev.Taken))
	e.Uint(uint64(ev.Failure))
	e.Uint(uint64(ev.Gauges.Known))
	e.Int(int64(ev.Gauges.Running))
	e.Int(int64(ev.Gauges.Waiting))
	e.Float(ev.Gauges.KVUsage)
	e.Int(int64(ev.Gauges.KVBlocks))
	e.Tokens(ev.Gauges.KVBlock)
	e.Int(int64(ev.Adapters.Max))
	encodeAdapters(e, ev.Adapters.List[:ev.Adapters.Count])
}

func encodeAdapters(e *journal.Encoder, list []fleet.Adapter) {
	e.Uint(uint64(len(list)))
	for _, a := range list {
		e.Fixed(uint64(a))
	}
}

func decodeAdapters(d *journal.Decoder) []fleet.Adapter {
	const adapterBytes = 8
	var list []fleet.Adapter
	for range d.Len(adapterBytes) {
		list = append(list, fleet.Adapter(d.Fixed()))
	}
	return list
}

func decodeSample(d *journal.Decoder) *Sample {
	ev := &Sample{
		Endpoint: endpointID(d), Gen: gen(d), Taken: fleet.Time(d.Int()), Failure: fleet.Failure(d.Uint()),
		Gauges: fleet.Gauges{
			Known: fleet.Known(d.Uint()), Running: int(d.Int()), Waiting: int(d.Int()), KVUsage: d.Float(),
			KVBlocks: int(d.Int()), KVBlock: d.Tokens(),
		},
		Adapters: fleet.Adapters{Max: int(d.Int())},
	}
	for _, a := range decodeAdapters(d) {
		ev.Adapters.Add(a)
	}
	return ev
}

func encodeArrive(e *journal.Encoder, ev *Arrive) {
	e.Uint(uint64(ev.Req))
	e.Tokens(ev.Prompt)
	e.Tokens(ev.MaxOut)
	e.Float(ev.KeyTokens)
	encodeTerms(e, ev.Terms)
	e.Uint(uint64(ev.Owner))
	e.Fixed(uint64(ev.Adapter))
	e.Bool(ev.Loadable)
	e.Bool(ev.Silent)
	e.Bool(ev.Whole)
	encodeKeys(e, ev.Chain)
	encodeKeys(e, ev.Blocks)
	encodeKeys(e, ev.Images)
}

func decodeArrive(d *journal.Decoder) *Arrive {
	ev := &Arrive{
		Req: fleet.ReqID(d.Uint()), Prompt: d.Tokens(), MaxOut: d.Tokens(), KeyTokens: d.Float(),
		Terms: decodeTerms(d), Owner: endpointID(d), Adapter: fleet.Adapter(d.Fixed()), Loadable: d.Bool(), Silent: d.Bool(), Whole: d.Bool(),
	}
	ev.Chain, ev.Blocks, ev.Images = decodeKeys(d), decodeKeys(d), decodeKeys(d)
	return ev
}

func encodeTerms(e *journal.Encoder, t fleet.Terms) {
	e.Fixed(uint64(t.Tenant))
	e.Int(int64(t.Priority))
	e.Duration(t.SLO.TTFT)
	e.Duration(t.SLO.TPOT)
}

func decodeTerms(d *journal.Decoder) fleet.Terms {
	return fleet.Terms{
		Tenant: fleet.Tenant(d.Fixed()), Priority: int(d.Int()), SLO: fleet.SLO{TTFT: d.Duration(), TPOT: d.Duration()},
	}
}

func encodeLeg(e *journal.Encoder, ev *Leg) {
	e.Uint(uint64(ev.Req))
	e.Int(int64(ev.Attempt))
	e.Uint(uint64(ev.Phase))
	e.Tokens(ev.Output)
	e.Bool(ev.Usage.Known)
	e.Tokens(ev.Usage.Prompt)
	e.Tokens(ev.Usage.Cached)
	e.Tokens(ev.Usage.Output)
	e.Uint(uint64(ev.Failure))
	e.Bool(ev.Committed)
	e.Bool(ev.Prefill)
}

func decodeLeg(d *journal.Decoder) *Leg {
	return &Leg{
		Req: fleet.ReqID(d.Uint()), Attempt: int(d.Int()), Phase: fleet.Phase(d.Uint()), Output: d.Tokens(),
		Usage:   fleet.Usage{Known: d.Bool(), Prompt: d.Tokens(), Cached: d.Tokens(), Output: d.Tokens()},
		Failure: fleet.Failure(d.Uint()), Committed: d.Bool(), Prefill: d.Bool(),
	}
}

// EncodeActions appends what a step returned, decisions in full, so that a
// replay can be compared byte by byte.
func EncodeActions(e *journal.Encoder, actions []Action) {
	e.Uint(uint64(len(actions)))
	for i := range actions {
		a := &actions[i]
		e.Uint(uint64(a.Kind))
		e.Uint(uint64(a.Req))
		e.Int(int64(a.Attempt))
		e.Uint(uint64(a.Endpoint))
		e.Uint(uint64(a.Gen))
		e.Uint(uint64(a.Prefill))
		e.Uint(uint64(a.PrefillGen))
		e.Uint(uint64(a.Source))
		e.Uint(uint64(a.SourceGen))
		e.Uint(uint64(a.Refusal))
		e.Duration(a.RetryAfter)
		e.Uint(uint64(a.Health))
		e.Uint(uint64(a.Cause))
		if a.Kind == Moved {
			e.Tokens(a.Tokens)
			e.Duration(a.Expected)
			e.Duration(a.Took)
		}
		if a.Kind == Encode {
			e.Uint(uint64(a.Image))
		}
		e.Bool(a.Decision != nil)
		if a.Decision != nil {
			encodeDecision(e, a.Decision)
		}
	}
}

func encodeDecision(e *journal.Encoder, d *fleet.Decision) {
	e.Int(int64(d.At))
	e.Bytes([]byte(d.Policy))
	encodeTerms(e, d.Terms)
	e.Tokens(d.Prompt)
	e.Duration(d.Queued)
	e.Uint(uint64(d.RunnerUp))
	e.Uint(uint64(d.Shadow))
	e.Float(d.Margin)
	e.Uint(uint64(d.Prefill))
	e.Uint(uint64(d.Source))
	e.Tokens(d.Pulled)
	encodePlanCost(e, &d.Whole)
	encodePlanCost(e, &d.Split)
	encodePlanCost(e, &d.Pull)
	encodeEndpoints(e, d.Encoders)
	e.Int(int64(d.Barred))
	e.Uint(uint64(d.BarredPair.Prefill))
	e.Uint(uint64(d.BarredPair.Decode))
	for _, n := range d.Counts {
		e.Int(int64(n))
	}
	e.Uint(uint64(len(d.Candidates)))
	for _, c := range d.Candidates {
		e.Uint(uint64(c.Endpoint))
		e.Uint(uint64(c.Verdict))
		e.Tokens(c.Matched)
		encodeCached(e, &c.Cache)
		e.Tokens(c.Backlog)
		e.Int(int64(c.InFlight))
		e.Float(c.Score)
		e.Duration(c.TTFT)
		e.Duration(c.TPOT)
		e.Duration(c.SampleAge)
		e.Uint(uint64(c.Adapter))
	}
}

func encodePlanCost(e *journal.Encoder, c *fleet.PlanCost) {
	e.Uint(uint64(c.Endpoint))
	e.Uint(uint64(c.Prefill))
	e.Uint(uint64(c.Source))
	e.Duration(c.TTFT)
	e.Duration(c.Move)
	e.Float(c.Cost)
}

func decodePlanCost(d *journal.Decoder) fleet.PlanCost {
	return fleet.PlanCost{Endpoint: endpointID(d), Prefill: endpointID(d), Source: endpointID(d), TTFT: d.Duration(), Move: d.Duration(), Cost: d.Float()}
}

func encodeCached(e *journal.Encoder, c *fleet.Cached) {
	e.Tokens(c.Tokens)
	e.Tokens(c.CPU)
	e.Tokens(c.Disk)
	e.Tokens(c.Shared)
	e.Tokens(c.Ready)
	e.Uint(uint64(c.Source))
	e.Duration(c.Fetch)
}

func decodeCached(d *journal.Decoder) fleet.Cached {
	return fleet.Cached{Tokens: d.Tokens(), CPU: d.Tokens(), Disk: d.Tokens(), Shared: d.Tokens(), Ready: d.Tokens(), Source: fleet.CacheSource(d.Uint()), Fetch: d.Duration()}
}

// DecodeActions reads actions that EncodeActions wrote.
func DecodeActions(d *journal.Decoder) ([]Action, error) {
	var list []Action
	for range d.Len(1) {
		a := Action{
			Kind: ActionKind(d.Uint()), Req: fleet.ReqID(d.Uint()), Attempt: int(d.Int()), Endpoint: endpointID(d), Gen: gen(d), Prefill: endpointID(d), PrefillGen: gen(d), Source: endpointID(d), SourceGen: gen(d),
			Refusal: fleet.Refusal(d.Uint()), RetryAfter: d.Duration(), Health: health.State(d.Uint()), Cause: fleet.Failure(d.Uint()),
		}
		if a.Kind == Moved {
			a.Tokens, a.Expected, a.Took = d.Tokens(), d.Duration(), d.Duration()
		}
		if a.Kind == Encode {
			a.Image = decodeImage(d)
		}
		if d.Bool() {
			a.Decision = decodeDecision(d)
			a.Decision.Req, a.Decision.Attempt, a.Decision.Chosen = a.Req, a.Attempt, a.Endpoint
		}
		list = append(list, a)
	}
	return list, d.Err()
}

func decodeDecision(d *journal.Decoder) *fleet.Decision {
	out := &fleet.Decision{
		At: fleet.Time(d.Int()), Policy: string(d.Bytes()), Terms: decodeTerms(d), Prompt: d.Tokens(), Queued: d.Duration(),
		RunnerUp: endpointID(d), Shadow: endpointID(d), Margin: d.Float(),
		Prefill: endpointID(d), Source: endpointID(d), Pulled: d.Tokens(),
		Whole: decodePlanCost(d), Split: decodePlanCost(d), Pull: decodePlanCost(d),
		Encoders: decodeEndpoints(d),
		Barred:   int(d.Int()), BarredPair: fleet.Pair{Prefill: endpointID(d), Decode: endpointID(d)},
	}
	for i := range out.Counts {
		out.Counts[i] = int(d.Int())
	}
	for range d.Len(1) {
		out.Candidates = append(out.Candidates, fleet.Candidate{
			Endpoint: endpointID(d), Verdict: fleet.Verdict(d.Uint()), Matched: d.Tokens(), Cache: decodeCached(d), Backlog: d.Tokens(), InFlight: int(d.Int()),
			Score: d.Float(), TTFT: d.Duration(), TPOT: d.Duration(), SampleAge: d.Duration(), Adapter: fleet.AdapterFit(d.Uint()),
		})
	}
	return out
}
