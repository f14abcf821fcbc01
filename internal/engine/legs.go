package engine

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"penstock.dev/penstock/internal/api"
	"penstock.dev/penstock/internal/fleet"
)

// Connector is how engines hand the KV of a prompt over to each other, and so
// what a gateway says to both. Each engine's own parameters are passed on as they
// came: what they mean is between the engines.
type Connector string

// The connectors. Each has a file of its own, and a row in handovers.
const (
	// ConnectorNone cannot.
	ConnectorNone        Connector = ""
	ConnectorNIXL        Connector = "nixl"         // vLLM: one pulls what the other has computed
	ConnectorNIXLPush    Connector = "nixl-push"    // vLLM: it is pushed as it is computed
	ConnectorMooncake    Connector = "mooncake"     // vLLM: both at once, found over a bootstrap server
	ConnectorMoRIIO      Connector = "moriio"       // vLLM: one reads what the other has computed
	ConnectorMoRIIOWrite Connector = "moriio-write" // vLLM: it is written as it is computed
	ConnectorSGLang      Connector = "sglang"       // SGLang: both at once, met in a room
	ConnectorShared      Connector = "shared"       // vLLM: over a store that all share
	ConnectorOffload     Connector = "offload"      // vLLM: out of the memory below the GPU
	ConnectorLLMD        Connector = "llm-d"        // a sidecar does it, told by headers
)

// handover is one way to hand KV over.
type handover struct {
	name Connector
	legs func(ctx context.Context, c *Client, s *Split) (Legs, error)
	// pull is for engines that can be told to fetch the prefix of a prompt; nil for
	// those that cannot.
	pull func(body []byte, id string, source Party) (Leg, error)
}

// handovers returns all of them, in the order in which they are listed.
func handovers() []handover {
	return []handover{
		{name: ConnectorNIXL, legs: nixlLegs},
		{name: ConnectorNIXLPush, legs: nixlPushLegs},
		{name: ConnectorMooncake, legs: mooncakeLegs},
		{name: ConnectorMoRIIO, legs: moriioLegs},
		{name: ConnectorMoRIIOWrite, legs: moriioWriteLegs},
		{name: ConnectorSGLang, legs: sglangLegs},
		{name: ConnectorShared, legs: sharedLegs},
		{name: ConnectorOffload, legs: offloadLegs, pull: offloadPull},
		{name: ConnectorLLMD, legs: llmdLegs, pull: llmdPull},
	}
}

// Connectors returns the names of all.
func Connectors() []string {
	var names []string
	for _, h := range handovers() {
		names = append(names, string(h.name))
	}
	return names
}

// ParseConnector returns the connector of a name; empty is none.
func ParseConnector(name string) (Connector, error) {
	if name == "" || slices.Contains(Connectors(), name) {
		return Connector(name), nil
	}
	return ConnectorNone, fmt.Errorf("connector %q is not known: name one of %v", name, Connectors())
}

func (k Connector) handover() handover {
	for _, h := range handovers() {
		if h.name == k {
			return h
		}
	}
	return handover{}
}

// Party is an engine with a part in a handover.
type Party struct {
	URL  string // its base URL
	Host string // by which other engines know it; empty: that of the URL
	// Port is where other engines find its KV: its bootstrap server, handshake or
	// side channel; 0: the connector's own. NotifyPort is the second one that MoRI-IO
	// has.
	Port, NotifyPort int
	// Rank is which of Ranks data-parallel ranks it is; a server of one has 0 of
	// them.
	Rank, Ranks int
	// Incarnation changes with its process, as far as that is seen.
	Incarnation uint64
}

// host is the name or address by which others reach it.
func (p Party) host() string {
	if p.Host != "" {
		return p.Host
	}
	u, err := url.Parse(p.URL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// port is where its KV is found: ranks are at ports higher by their number.
func (p Party) port(first int) int {
	if p.Port != 0 {
		first = p.Port
	}
	return first + p.Rank
}

// hostPort is where it serves.
func (p Party) hostPort() string {
	u, err := url.Parse(p.URL)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Split is a request of which Prefill is to compute the prompt and Decode the
// answer.
type Split struct {
	Kind            api.Kind
	Body            []byte // as it would be sent to one engine alone
	ID              string // names the attempt among all there are
	Prefill, Decode Party
	// Encoded is where the prompt's images are, as those that have encoded them say: a
	// JSON object; nil where nobody has.
	Encoded []byte
	// Encoders encode the prompt's images, where a sidecar asks them; nil for none.
	Encoders []Party
	// Source has a prefix of the prompt that Prefill is to fetch; nil for none.
	Source *Party
	// HitThreshold is the share of a prompt that must have KV for Decode to compute
	// the rest of it alone, where engines can be asked that; 0 does not ask.
	HitThreshold float64
}

// Course is the order in which the two engines are asked.
type Course uint8

// The courses.
const (
	InTurn   Course = iota // the one that answers when the other has computed the prompt
	Together               // both at once: when one fails the other must be cancelled
	Alone                  // only the one that answers, which has somebody ask the other
)

// Legs is what the engines of a split request are sent.
type Legs struct {
	Course Course
	// Try goes to the one that answers before all else: if it answers otherwise than
	// with Chunk.Missed, that is the answer. nil for nothing.
	Try    *Leg
	First  Leg // to the one that computes the prompt
	Second Leg // to the one that answers
	// Next returns Second where it depends on the answer to First; nil where it does
	// not.
	Next func(answer []byte) (Leg, error)
	// Check looks at the answer to First, in the course Together: on an error the
	// other engine waits for what will not come. nil where every answer is as good.
	Check func(answer []byte) error
	// Failed forgets what was believed of the engines when the legs were made; nil
	// for nothing.
	Failed func()
}

// Leg is what one engine is sent.
type Leg struct {
	Body   []byte
	Header http.Header // besides the request's own; nil for none
}

// Legs returns what the engines of a split request are sent. It may have to ask
// the engines who they are; that failure is of the one that computes the prompt.
func (c *Client) Legs(ctx context.Context, k Connector, s *Split) (Legs, fleet.Failure, error) {
	h := k.handover()
	if h.legs == nil {
		return Legs{}, fleet.FailOverload, fmt.Errorf("connector %q cannot split a request", k)
	}
	l, err := h.legs(ctx, c, s)
	switch {
	case err == nil:
		return l, fleet.FailNone, nil
	case isLookup(err):
		return l, Classify(err), err
	}
	return l, fleet.FailOverload, err
}

// CanPull reports whether engines can be told to fetch the prefix of a prompt
// from each other.
func (k Connector) CanPull() bool { return k.handover().pull != nil }

// Pull returns what an engine is sent instead of body so that it fetches what
// source has of the prompt before it computes the rest. The id names the attempt
// among all there are.
func (k Connector) Pull(body []byte, id string, source Party) (Leg, error) {
	if pull := k.handover().pull; pull != nil {
		return pull(body, id, source)
	}
	return Leg{}, fmt.Errorf("connector %q cannot pull a prefix", k)
}

// transferParams is vLLM's field for what a request's engine is to do with KV.
const transferParams = "kv_transfer_params"

// withParams returns body with an object as its kv_transfer_params.
func withParams(body []byte, members ...api.Field) (Leg, error) {
	b, err := api.Splice(body, []api.Field{{Name: transferParams, Raw: object(members...)}})
	return Leg{Body: b}, err
}

// toPrefill returns body as one that has its prompt computed, with an object as its
// kv_transfer_params.
func toPrefill(s *Split, members ...api.Field) (Leg, error) {
	return prompted(s, api.Field{Name: transferParams, Raw: object(members...)})
}

// prompted returns body as one that has its prompt computed, with more fields and
// what is known of its images.
func prompted(s *Split, more ...api.Field) (Leg, error) {
	if s.Encoded != nil {
		more = append(more, api.Field{Name: encodedParams, Raw: s.Encoded})
	}
	b, err := s.Kind.ToPrefill(s.Body, more...)
	return Leg{Body: b}, err
}

// object returns a JSON object.
func object(members ...api.Field) []byte {
	b := []byte{'{'}
	for i, m := range members {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(api.AppendString(b, m.Name), ':'), m.Raw...)
	}
	return append(b, '}')
}

func str(name, value string) api.Field {
	return api.Field{Name: name, Raw: api.AppendString(nil, value)}
}

func num(name string, value int) api.Field {
	return api.Field{Name: name, Raw: strconv.AppendInt(nil, int64(value), 10)}
}

func flag(name string, value bool) api.Field {
	return api.Field{Name: name, Raw: strconv.AppendBool(nil, value)}
}

func null(name string) api.Field { return api.Field{Name: name, Raw: []byte("null")} }

// paramsOf returns the kv_transfer_params of an answer, or says what an engine
// without them lacks.
func paramsOf(answer []byte) ([]byte, error) {
	params := api.Member(answer, transferParams)
	if len(params) == 0 || params[0] != '{' {
		return nil, fmt.Errorf("the engine that computed the prompt does not say where it is (no kv_transfer_params in its answer): start it with a KV connector")
	}
	return params, nil
}
