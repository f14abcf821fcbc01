package engine

import (
	"context"
	"errors"

	"penstock.dev/penstock/internal/api"
)

// DefaultP2PPort is where vLLM's offloading connector serves what is in the memory
// below the GPU to others, the first rank; see VLLM_P2P_SIDE_CHANNEL_PORT.
const DefaultP2PPort = 7777

// vLLM's OffloadingConnector with a tier between peers: the prompt is computed
// first, its blocks wait under an id, and the other engine is told where. Asked at
// once it would only wait longer for them.
func offloadLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	ask := []api.Field{{Name: "remote_decoder", Raw: object(str("kv_request_id", s.ID))}}
	if s.Source != nil {
		ask = append(ask, offloadPeer("remote_kv_source", s.ID, *s.Source))
	}
	first, errFirst := toPrefill(s, ask...)
	second, err := withParams(s.Body, offloadPeer("remote_prefiller", s.ID, s.Prefill))
	return Legs{First: first, Second: second}, errors.Join(errFirst, err)
}

// offloadPull has an engine look at a peer for blocks of the prompt. It computes
// those that are not there.
func offloadPull(body []byte, id string, source Party) (Leg, error) {
	return withParams(body, offloadPeer("remote_kv_source", id, source))
}

// offloadPeer names an engine by its part in a request.
func offloadPeer(part, id string, p Party) api.Field {
	return api.Field{Name: part, Raw: object(str("kv_request_id", id), str("remote_host", p.host()), num("remote_port", p.port(DefaultP2PPort)))}
}
