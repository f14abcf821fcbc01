package engine

import (
	"context"
	"errors"

	"penstock.dev/penstock/internal/api"
)

// vLLM's NixlConnector that pulls: the prompt is computed first and kept under a
// lease, and the answer says where the other engine fetches it.
func nixlLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	first, err := toPrefill(s, nixlAsk()...)
	return Legs{First: first, Next: func(answer []byte) (Leg, error) { return nixlTake(s, answer) }}, err
}

// nixlAsk asks a vLLM engine to keep what it computes for another.
func nixlAsk() []api.Field {
	return []api.Field{
		flag("do_remote_decode", true), flag("do_remote_prefill", false),
		null("remote_engine_id"), null("remote_block_ids"), null("remote_host"), null("remote_port"),
	}
}

// nixlTake passes on where the prompt is, byte for byte, with more members put in.
func nixlTake(s *Split, answer []byte, more ...api.Field) (Leg, error) {
	params, err := paramsOf(answer)
	if err == nil && len(more) > 0 {
		params, err = api.Splice(params, more)
	}
	if err != nil {
		return Leg{}, err
	}
	body, err := api.Splice(s.Body, []api.Field{{Name: transferParams, Raw: params}})
	return Leg{Body: body}, err
}

// vLLM's NixlConnector that pushes: both engines know the transfer by the same id,
// and the one that answers tells the other where to put the KV. For that it must be
// told who the other one is, which is in the answers of that one: the first request
// to a process is asked in turn, the next ones at once.
func nixlPushLegs(_ context.Context, c *Client, s *Split) (Legs, error) {
	p, id := s.Prefill, str("transfer_id", s.ID)
	first, err := toPrefill(s, append(nixlAsk(), id)...)
	if err != nil {
		return Legs{}, err
	}
	who, met := c.pushers.peek(p)
	if !met {
		return Legs{First: first, Next: func(answer []byte) (Leg, error) {
			if who, ok := pushIdentity(answer); ok {
				c.pushers.put(p, who)
			}
			return nixlTake(s, answer, id)
		}}, nil
	}
	second, err := withParams(s.Body, append(who.members(), flag("do_remote_prefill", true), flag("do_remote_decode", false), str("remote_request_id", s.ID), id)...)
	return Legs{
		Course: Together, First: first, Second: second, Failed: func() { c.pushers.drop(p) },
		Check: func(answer []byte) error {
			if now, ok := pushIdentity(answer); ok && now != who {
				c.pushers.put(p, now)
				return errors.New("the engine that computes the prompt is another process by now")
			}
			return nil
		},
	}, err
}

// pusher is what is the same in all answers of a process that pushes: raw values
// of its identityFields.
type pusher [len(identityFields)]string

// identityFields tell who an engine is; those before mustTell are in every answer,
// and the one there is "push".
var identityFields = [...]string{"remote_engine_id", "remote_host", "remote_port", "transfer_mode", "tp_size", "pp_size", "dcp_size"}

const mustTell = 3

// pushIdentity reads who has computed a prompt off its answer.
func pushIdentity(answer []byte) (who pusher, ok bool) {
	params, err := paramsOf(answer)
	if err != nil {
		return who, false
	}
	for i, name := range identityFields {
		raw := api.Member(params, name)
		plain := len(raw) > 0 && raw[0] != '{' && raw[0] != '[' && raw[0] != 'n'
		if plain {
			who[i] = string(raw)
		} else if i < mustTell {
			return who, false
		}
	}
	return who, who[mustTell] == `"push"`
}

func (p pusher) members() []api.Field {
	var list []api.Field
	for i, raw := range p {
		if raw != "" {
			list = append(list, api.Field{Name: identityFields[i], Raw: []byte(raw)})
		}
	}
	return list
}
