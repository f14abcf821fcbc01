package engine

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"

	"penstock.dev/penstock/internal/api"
)

// Connector is how engines hand the KV of a prompt over to each other, and so
// what a gateway says to both. Each engine's own parameters are passed on as they
// came: what they mean is between the engines.
type Connector string

// The connectors.
const (
	// ConnectorNone cannot.
	ConnectorNone Connector = ""
	// ConnectorNIXL is vLLM's: the prompt is computed first, and its answer says
	// where the other engine fetches it.
	ConnectorNIXL Connector = "nixl"
	// ConnectorSGLang is SGLang's: both engines are asked at once, and meet at a
	// room of the first one's bootstrap server.
	ConnectorSGLang Connector = "sglang"
)

// Connectors returns the names of all.
func Connectors() []string { return []string{string(ConnectorNIXL), string(ConnectorSGLang)} }

// ParseConnector returns the connector of a name; empty is none.
func ParseConnector(name string) (Connector, error) {
	switch c := Connector(name); c {
	case ConnectorNone, ConnectorNIXL, ConnectorSGLang:
		return c, nil
	}
	return ConnectorNone, fmt.Errorf("connector %q is not known: name one of %v", name, Connectors())
}

// Together reports whether both engines are asked at once.
func (c Connector) Together() bool { return c == ConnectorSGLang }

// nixlAsk asks a vLLM engine to keep what it computes for another.
const nixlAsk = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}`

// DefaultBootstrapPort is where SGLang's prefill engines have their bootstrap
// server.
const DefaultBootstrapPort = 8998

// Begin returns what the first engine is sent, for a request whose body would be
// sent to one alone, and, where both are asked at once, what the second is. The
// first engine's base URL and bootstrap port (0: the default) tell where they meet.
func (c Connector) Begin(kind api.Kind, body []byte, base string, bootstrap int) (first, second []byte, err error) {
	switch c {
	case ConnectorNIXL:
		first, err = kind.ToPrefill(body, api.Field{Name: "kv_transfer_params", Raw: []byte(nixlAsk)})
		return first, nil, err
	case ConnectorSGLang:
		u, err := url.Parse(base)
		if err != nil {
			return nil, nil, err
		}
		if bootstrap == 0 {
			bootstrap = DefaultBootstrapPort
		}
		// A room is unique while it is used: 63 random bits are.
		both, err := api.Splice(body, []api.Field{
			{Name: "bootstrap_host", Raw: api.AppendString(nil, u.Hostname())},
			{Name: "bootstrap_port", Raw: strconv.AppendInt(nil, int64(bootstrap), 10)},
			{Name: "bootstrap_room", Raw: strconv.AppendInt(nil, rand.Int64(), 10)},
		})
		return both, both, err
	}
	return nil, nil, fmt.Errorf("connector %q cannot split a request", c)
}

// Second returns what the second engine is sent when the first has answered so.
func (c Connector) Second(body, answer []byte) ([]byte, error) {
	params := api.Member(answer, "kv_transfer_params")
	if len(params) == 0 || string(params) == "null" {
		return nil, fmt.Errorf("the engine that computed the prompt does not say where it is (no kv_transfer_params in its answer): start it with a KV connector")
	}
	return api.Splice(body, []api.Field{{Name: "kv_transfer_params", Raw: params}})
}
