package engine

import (
	"context"
	"net/http"
	"strings"
)

// The headers by which llm-d's sidecars are told what to do.
const (
	PrefillerHeader = "X-Prefiller-Host-Port"
	SourceHeader    = "X-Kv-Cache-Source-Host-Port"
	EncodersHeader  = "X-Encoder-Hosts-Ports"
)

// Where a sidecar of llm-d stands before the engine that answers, it is sent the
// request alone and told by a header who computes the prompt. The sidecar asks that
// one, in its engines' dialect.
func llmdLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	h := http.Header{PrefillerHeader: {s.Prefill.hostPort()}}
	if s.Source != nil {
		h.Set(SourceHeader, s.Source.hostPort())
	}
	if len(s.Encoders) > 0 {
		h.Set(EncodersHeader, EncodersValue(s.Encoders))
	}
	return Legs{Course: Alone, Second: Leg{Body: s.Body, Header: h}}, nil
}

// EncodersValue names those who encode a request's images, in the images' order.
func EncodersValue(list []Party) string {
	var at []string
	for _, p := range list {
		at = append(at, p.hostPort())
	}
	return strings.Join(at, ",")
}

// llmdPull tells the sidecar who has a prefix of the prompt.
func llmdPull(body []byte, _ string, source Party) (Leg, error) {
	return Leg{Body: body, Header: http.Header{SourceHeader: {source.hostPort()}}}, nil
}
