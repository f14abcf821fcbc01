package app

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/config"
	"penstock.dev/penstock/internal/enginesim/server"
	"penstock.dev/penstock/internal/pool"
)

// startEncoding runs a gateway before engines of which some encode images.
func startEncoding(t *testing.T, f Fleet) (*App, *Simulated) {
	t.Helper()
	sim, err := Simulate(server.Options{Seed: 1, Speedup: 20}, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	c := config.Default()
	c.Pools = []config.Pool{sim.Pool}
	if f.Prefill > 0 {
		c.Pools[0].Split = pool.SplitAlways
	}
	a, err := Start(Options{Config: c, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, sim
}

// see asks what is to be seen in images and returns the answer, without what is
// another one's each time.
func see(t *testing.T, a *App, id, path string, urls ...string) string {
	t.Helper()
	var parts []string
	for _, u := range urls {
		part := `{"type":"image_url","image_url":{"url":%q}}`
		switch path {
		case "/v1/responses":
			part = `{"type":"input_image","image_url":%q}`
		case "/v1/messages":
			part = `{"type":"image","source":{"type":"url","url":%q}}`
		}
		parts = append(parts, fmt.Sprintf(part, u))
	}
	turns := `"messages"`
	if path == "/v1/responses" {
		turns = `"input"`
	}
	body := fmt.Sprintf(`{"model":"Qwen/Qwen3-32B","max_tokens":8,"max_output_tokens":8,%s:[{"role":"user","content":[%s]}]}`, turns, strings.Join(parts, ","))
	status, raw := posted(t, a, path, id, body)
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, raw)
	}
	_, text, _ := strings.Cut(string(raw), `"content":`)
	text, _, _ = strings.Cut(text, "}")
	return text
}

// images adds up what the engines of a role have had to do with images.
func (s *Simulated) images(role string) (sum server.ImageCounts) {
	for i := range s.nodes {
		if cmp.Or(s.Pool.Endpoints[i].Role, "both") == role {
			c := s.nodes[i].Server.ImageCounts()
			sum = server.ImageCounts{Encoded: sum.Encoded + c.Encoded, Fetched: sum.Fetched + c.Fetched, Missed: sum.Missed + c.Missed, Wrong: sum.Wrong + c.Wrong, Served: sum.Served + c.Served}
		}
	}
	return sum
}

func (s *Simulated) first(role string) *server.Node {
	return s.nodes[slices.IndexFunc(s.Pool.Endpoints, func(e config.Endpoint) bool { return e.Role == role })]
}

// Images are encoded by who is there for that, whatever the API, and the answer is
// the one that there is without.
func TestImagesAreEncodedByEncoders(t *testing.T) {
	plain, _ := startEncoding(t, Fleet{Replicas: 1})
	for _, path := range []string{"/v1/chat/completions", "/v1/responses", "/v1/messages"} {
		t.Run(path, func(t *testing.T) {
			a, sim := startEncoding(t, Fleet{Replicas: 1, Encode: 1})
			if got, want := see(t, a, "q", path, "https://x/1", "https://x/2"), see(t, plain, "q"+path, path, "https://x/1", "https://x/2"); got != want || got == "" {
				t.Errorf("answered %q, want %q", got, want)
			}
			if c := sim.images("encode"); c.Encoded != 2 || c.Served != 2 {
				t.Errorf("who encodes: %+v", c)
			}
			if c := sim.images("both"); c.Fetched != 2 || c.Encoded != 0 {
				t.Errorf("who answers: %+v", c)
			}
			if e := explained(t, a, "q").Attempts[0].Encoders; len(e) != 2 || e[0] != "encode-1" || e[1] != "encode-1" {
				t.Errorf("explained: %v", e)
			}
		})
	}
}

// With prompts computed elsewhere, the image goes where the prompt is computed.
func TestImagesOfSplitRequestsAreEncodedByEncoders(t *testing.T) {
	a, sim := startEncoding(t, Fleet{Prefill: 1, Decode: 1, Encode: 2})
	for i := range 4 {
		see(t, a, fmt.Sprint("q", i), "/v1/chat/completions", fmt.Sprint("https://x/", i))
	}
	if p, d, e := sim.images("prefill"), sim.images("decode"), sim.images("encode"); p.Fetched != 4 || p.Encoded != 0 || d != (server.ImageCounts{}) || e.Encoded != 4 {
		t.Errorf("prompts %+v, answers %+v, images %+v", p, d, e)
	}
	if at := explained(t, a, "q0").Attempts; len(at) != 1 || at[0].Prefill == "" || len(at[0].Encoders) != 1 {
		t.Errorf("%+v", at)
	}
}

// An encoder that fails costs no client anything, whatever its way to do so.
func TestEncodersMayFail(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault *server.Fault // nil: it is killed
		wrong int
	}{
		{"dead", nil, 0},
		{"refuses", &server.Fault{Kind: "refuse", Status: 500}, 0},
		{"garbage", &server.Fault{Kind: "garbage-body"}, 0},
		{"the image is lost", &server.Fault{Kind: "ec-lost"}, 0},
		{"another image", &server.Fault{Kind: "ec-wrong"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, sim := startEncoding(t, Fleet{Replicas: 1, Encode: 1})
			if e := sim.first("encode"); c.fault == nil {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			} else if err := e.Server.SetFault(*c.fault); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				id := fmt.Sprint("q", i)
				if got := see(t, a, id, "/v1/chat/completions", "https://x/"+id); got == "" {
					t.Error("no answer")
				}
				if r := explained(t, a, id); len(r.Attempts) != 1 {
					t.Errorf("%+v", r.Attempts)
				}
			}
			if got := sim.images("both"); got.Encoded != 2 || got.Fetched != 0 || got.Wrong != c.wrong {
				t.Errorf("who answers: %+v", got)
			}
		})
	}
	t.Run("one of two", func(t *testing.T) {
		a, sim := startEncoding(t, Fleet{Replicas: 1, Encode: 2})
		if err := sim.first("encode").Close(); err != nil {
			t.Fatal(err)
		}
		const requests = 8
		for i := range requests {
			see(t, a, fmt.Sprint("q", i), "/v1/chat/completions", fmt.Sprint("https://x/", i))
		}
		if e, s := sim.images("encode"), sim.images("both"); e.Encoded != requests || s.Fetched != requests {
			t.Errorf("who encodes %+v, who answers %+v", e, s)
		}
	})
}
