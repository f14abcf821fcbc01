package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Detection is what an engine was found to be.
type Detection struct {
	Dialect Dialect
	Why     string // what told
}

// signs are the paths that one kind of engine alone answers with 200 and JSON
// that has a given field.
var signs = []struct{ dialect, path, field string }{
	{"ollama", "/api/version", "version"},
	{"sglang", "/get_model_info", "model_path"},
	{"llamacpp", "/props", "default_generation_settings"},
	{"vllm", "/version", "version"}, // others have one too, so it comes last
}

// Detect finds out which kind of engine answers at base: by the owner that its
// model list names, the names of its metrics, and paths that only it has. An
// engine that answers and shows no sign is spoken to as openai.
func (c *Client) Detect(ctx context.Context, base string) (Detection, error) {
	models, err := c.Models(ctx, base)
	if err != nil && ctx.Err() != nil {
		return Detection{}, err
	}
	for _, m := range models {
		for _, d := range dialects {
			if d.owner != "" && m.Owner == d.owner {
				return Detection{d, fmt.Sprintf("its models are owned by %q", m.Owner)}, nil
			}
		}
	}
	answered := err == nil
	for _, path := range []string{"/metrics", "/prometheus/metrics"} {
		body, status, err := c.page(ctx, base+path)
		if err != nil {
			continue
		}
		answered = true
		if d, ok := byPrefix(body); ok && status == http.StatusOK {
			return Detection{d, path + " has names of its own"}, nil
		}
	}
	for _, s := range signs {
		body, status, err := c.page(ctx, base+s.path)
		if err != nil {
			continue
		}
		answered = true
		var fields map[string]json.RawMessage
		if status == http.StatusOK && json.Unmarshal(body, &fields) == nil && fields[s.field] != nil {
			return Detection{mustDialect(s.dialect), "it answers " + s.path}, nil
		}
	}
	if !answered {
		return Detection{}, fmt.Errorf("what speaks at %s: %w", base, err)
	}
	return Detection{mustDialect("openai"), "it shows no sign of another kind"}, nil
}

// byPrefix returns the dialect whose metric names a page uses.
func byPrefix(page []byte) (Dialect, bool) {
	for line := range bytes.Lines(page) {
		for _, d := range dialects {
			if d.page != nil && strings.HasPrefix(string(line[:min(len(line), len(d.page.prefix))]), d.page.prefix) {
				return d, true
			}
		}
	}
	return Dialect{}, false
}

// page gets a page of bounded size, whatever its status.
func (c *Client) page(ctx context.Context, u string) ([]byte, int, error) {
	resp, err := c.get(ctx, u)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err := readInto(nil, resp.Body, maxMetricsPage)
	return body, resp.StatusCode, err
}
