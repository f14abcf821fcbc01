package engine

import (
	"context"
	"math/rand/v2"
	"strconv"

	"penstock.dev/penstock/internal/api"
)

// DefaultBootstrapPort is where engines that compute prompts have their bootstrap
// server, SGLang's and Mooncake's.
const DefaultBootstrapPort = 8998

// SGLang: both engines are sent the same, at once, and meet in a room of the
// bootstrap server of the one that computes the prompt. That one answers when its
// KV has been fetched, and waits as long for the other if it never comes.
func sglangLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	port := s.Prefill.Port
	if port == 0 {
		port = DefaultBootstrapPort
	}
	// A room is unique while it is used: 63 random bits are.
	both, err := api.Splice(s.Body, []api.Field{
		str("bootstrap_host", s.Prefill.host()), num("bootstrap_port", port),
		{Name: "bootstrap_room", Raw: strconv.AppendInt(nil, rand.Int64(), 10)},
	})
	return Legs{Course: Together, First: Leg{Body: both}, Second: Leg{Body: both}}, err
}
