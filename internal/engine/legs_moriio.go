package engine

import (
	"context"
	"errors"
	"net"
	"strconv"

	"penstock.dev/penstock/internal/api"
)

// Where MoRI-IO shakes hands and is notified.
const (
	moriioHandshake = 6301
	moriioNotify    = 61005
)

// vLLM's MoRIIOConnector that reads: as NIXL pulls, but both engines are told each
// other's ports, and know the transfer by an id that must begin with tx.
func moriioLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	first, err := toPrefill(s, moriioAsk(s)...)
	return Legs{First: first, Next: func(answer []byte) (Leg, error) {
		params, err := paramsOf(answer)
		if err != nil {
			return Leg{}, err
		}
		// What the engine does not tell of itself is known here.
		var more []api.Field
		for _, f := range append([]api.Field{moriioID(s)}, moriioPorts(s.Prefill)...) {
			if api.Member(params, f.Name) == nil {
				more = append(more, f)
			}
		}
		return nixlTake(s, answer, more...)
	}}, err
}

// vLLM's MoRIIOConnector that writes: both engines are asked at once, and the KV is
// written to where the one that answers has made room.
func moriioWriteLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	first, errFirst := toPrefill(s, moriioAsk(s)...)
	p := s.Prefill
	handshake := p.port(moriioHandshake)
	second, err := withParams(s.Body, append([]api.Field{
		flag("do_remote_prefill", true), flag("do_remote_decode", false),
		str("remote_engine_id", net.JoinHostPort(p.host(), strconv.Itoa(handshake))),
		{Name: "remote_block_ids", Raw: []byte("[]")},
		str("remote_host", p.host()), num("remote_port", handshake), moriioID(s),
	}, moriioPorts(p)...)...)
	return Legs{Course: Together, First: first, Second: second}, errors.Join(errFirst, err)
}

// moriioAsk has an engine compute a prompt for the other one.
func moriioAsk(s *Split) []api.Field {
	return append([]api.Field{
		flag("do_remote_decode", true), flag("do_remote_prefill", false), null("remote_engine_id"), null("remote_block_ids"),
		str("remote_host", s.Decode.host()), null("remote_port"), moriioID(s),
	}, moriioPorts(s.Decode)...)
}

func moriioID(s *Split) api.Field { return str("transfer_id", "tx"+s.ID) }

// moriioPorts tells an engine of the other one's ports and rank. The ports are
// those of rank 0: the engines add the rank.
func moriioPorts(p Party) []api.Field {
	handshake, notify := moriioHandshake, moriioNotify
	if p.Port != 0 {
		handshake = p.Port
	}
	if p.NotifyPort != 0 {
		notify = p.NotifyPort
	}
	return []api.Field{
		num("remote_handshake_port", handshake), num("remote_notify_port", notify),
		num("remote_dp_rank", p.Rank), flag("remote_dp_rank_override", true), num("remote_dp_size", max(p.Ranks, 1)),
	}
}
