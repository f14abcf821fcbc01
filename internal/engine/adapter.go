package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxRefusal is how much of an engine's reason is read.
const maxRefusal = 1 << 10

// LoadAdapter has an engine load a LoRA adapter from a path that the engine can
// read. One that is loaded already is no error.
func (c *Client) LoadAdapter(ctx context.Context, d Dialect, base, name, path string) error {
	d, err := c.resolve(ctx, d, base)
	if err != nil {
		return fmt.Errorf("load adapter %s at %s: %w", name, base, err)
	}
	if d.LoadLoRA == "" {
		return fmt.Errorf("load adapter %s at %s: %s engines load adapters only when they start", name, base, d.Name)
	}
	// Strings always marshal.
	body, _ := json.Marshal(map[string]string{"lora_name": name, "lora_path": path})
	// As a request of a client, since loading may take longer than a question may.
	resp, _, err := c.Send(ctx, base, d.LoadLoRA, http.Header{"Content-Type": {"application/json"}}, body)
	if err != nil {
		return fmt.Errorf("load adapter %s: %w", name, err)
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal)) // the status says enough without
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusBadRequest && strings.Contains(string(why), "already") {
		return nil
	}
	return fmt.Errorf("load adapter %s at %s: status %d: %s", name, base, resp.StatusCode, bytes.TrimSpace(why))
}
