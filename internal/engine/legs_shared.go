package engine

import (
	"context"
	"errors"
	"strconv"

	"penstock.dev/penstock/internal/api"
)

// hitThreshold is the share of a prompt that must have KV; where less has, a
// request ends with finish reason cache_threshold.
const hitThreshold = "cache_hit_threshold"

// vLLM's connectors over a store that all share need not be told of each other: the
// prompt is computed first, its KV goes to the store, and the other engine finds it
// there. Where it may have it already, it is asked to answer at once if so much of
// the prompt has KV.
func sharedLegs(_ context.Context, _ *Client, s *Split) (Legs, error) {
	own := api.Member(s.Body, hitThreshold)
	asks := string(own) != "" && string(own) != "null" || s.HitThreshold > 0
	if !asks {
		first, err := prompted(s)
		return Legs{First: first, Second: Leg{Body: s.Body}}, err
	}
	never := api.Field{Name: hitThreshold, Raw: []byte("0")}
	first, errFirst := prompted(s, never)
	second, err := api.Splice(s.Body, []api.Field{never})
	l := Legs{First: first, Second: Leg{Body: second}}
	if s.Kind.Protocol() == api.Completions { // whose answers tell
		try := s.Body
		if s.HitThreshold > 0 && (own == nil || string(own) == "null") {
			var errTry error
			try, errTry = api.Splice(s.Body, []api.Field{{Name: hitThreshold, Raw: strconv.AppendFloat(nil, s.HitThreshold, 'g', -1, 64)}})
			err = errors.Join(err, errTry)
		}
		l.Try = &Leg{Body: try}
	}
	return l, errors.Join(errFirst, err)
}
