package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"penstock.dev/penstock/internal/admin"
)

// roleCmd gives an endpoint another role.
type roleCmd struct {
	Endpoint string        `arg:"" help:"Its name; of a server with data-parallel ranks, all of them."`
	Role     string        `arg:"" enum:"both,prefill,decode,reset" help:"both, prefill, decode, or reset: what its source says."`
	Pool     string        `placeholder:"NAME" help:"Its pool; not needed where there is only one."`
	Drain    time.Duration `placeholder:"TIME" help:"How long what it has in its old role may take (default: the pool's drainTimeout)."`
	Wait     bool          `negatable:"" default:"true" help:"Wait until it has the role."`
	askFlags
}

// Help shows examples.
func (roleCmd) Help() string {
	return `The endpoint takes nothing new until what it has in its old role has ended, or
the time for that is up; then it takes the new one, and keeps it whatever its
source says.

Examples:
  penstock role gpu-3 prefill
  penstock role gpu-3 decode --drain 2m --no-wait
  penstock role gpu-3 reset`
}

// Run asks for the role and waits for it.
func (c *roleCmd) Run(ctx context.Context, s streams) error {
	pool, err := c.pool(ctx)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/api/endpoints/%s/%s/role", url.PathEscape(pool), url.PathEscape(c.Endpoint))
	if c.Role == "reset" {
		_, err = c.send(ctx, http.MethodDelete, path, nil)
	} else {
		body := map[string]string{"role": c.Role}
		if c.Drain > 0 {
			body["timeout"] = c.Drain.String()
		}
		_, err = c.send(ctx, http.MethodPost, path, body)
	}
	if err != nil || !c.Wait {
		return err
	}
	return c.follow(ctx, s, pool)
}

// pool returns the name of the only pool there is, if none is given.
func (c *roleCmd) pool(ctx context.Context) (string, error) {
	if c.Pool != "" {
		return c.Pool, nil
	}
	st, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	if len(st.Pools) != 1 {
		return "", fmt.Errorf("there are %d pools: say which with --pool", len(st.Pools))
	}
	return st.Pools[0].Name, nil
}

func (c *roleCmd) status(ctx context.Context) (st admin.Status, err error) {
	raw, err := c.get(ctx, "/api/status")
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	return st, err
}

// followEvery is the time between two looks at a change of role.
const followEvery = 200 * time.Millisecond

// follow tells how the change goes until it is over.
func (c *roleCmd) follow(ctx context.Context, s streams, pool string) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	last := ""
	for {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		now, turning, err := c.progress(&st, pool)
		if err != nil {
			return err
		}
		if now != last {
			fmt.Fprintln(s.Err, now)
			last = now
		}
		if !turning {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("the change goes on by itself")
		case <-tick.C:
		}
	}
}

// progress tells how far the change is.
func (c *roleCmd) progress(st *admin.Status, pool string) (text string, turning bool, err error) {
	for _, p := range st.Pools {
		for i := range p.Endpoints {
			e := &p.Endpoints[i]
			if p.Name != pool || e.Name != c.Endpoint && !isRankOf(e, c.Endpoint) {
				continue
			}
			switch t := e.Turning; {
			case t == nil:
				text = fmt.Sprintf("%s has the role %s", e.Name, e.Role)
				continue
			case !t.Draining:
				return fmt.Sprintf("%s waits until somebody else can answer requests", e.Name), true, nil
			default:
				return fmt.Sprintf("%s: %s to %s, %d requests left, at most until %s", e.Name, t.From, t.To, t.Open, t.Until.Local().Format(time.TimeOnly)), true, nil
			}
		}
	}
	if text == "" {
		return "", false, fmt.Errorf("pool %s has no endpoint %q any more", pool, c.Endpoint)
	}
	return text, false, nil
}

// isRankOf reports whether an endpoint is a data-parallel rank of a server.
func isRankOf(e *admin.EndpointStatus, server string) bool {
	return e.Rank != nil && e.Name == fmt.Sprintf("%s/%d", server, e.Rank.Rank)
}
