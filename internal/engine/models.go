package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"penstock.dev/penstock/internal/fleet"
)

// Model is one model an engine lists.
type Model struct {
	ID          string
	Parent      string       // the base model of an adapter; "" for a base model
	Root        string       // what is loaded; equal for the aliases of one model; "" when not told
	Owner       string       // owned_by: most kinds of engine name themselves
	MaxModelLen fleet.Tokens // 0 when not told
}

// maxModelList is the largest model list read.
const maxModelList = 4 << 20

// Models asks an engine what it serves.
func (c *Client) Models(ctx context.Context, base string) ([]Model, error) {
	resp, err := c.get(ctx, base+"/v1/models")
	if err != nil {
		return nil, fmt.Errorf("models of %s: %w", base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("models of %s: status %d", base, resp.StatusCode)
	}
	raw, err := readInto(nil, resp.Body, maxModelList)
	if err != nil {
		return nil, fmt.Errorf("models of %s: %w", base, err)
	}
	var list struct {
		Data []struct {
			ID          string `json:"id"`
			Parent      string `json:"parent"`
			Root        string `json:"root"`
			OwnedBy     string `json:"owned_by"`
			MaxModelLen int    `json:"max_model_len"`
		} `json:"data"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("models of %s: %w", base, err)
	}
	var models []Model
	for _, m := range list.Data {
		if m.ID != "" {
			models = append(models, Model{
				ID: m.ID, Parent: m.Parent, Root: m.Root, Owner: m.OwnedBy, MaxModelLen: fleet.Tokens(max(m.MaxModelLen, 0)),
			})
		}
	}
	if len(models) == 0 {
		return nil, fmt.Errorf("models of %s: the list is empty", base)
	}
	return models, nil
}
