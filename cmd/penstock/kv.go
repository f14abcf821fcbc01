package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"penstock.dev/penstock/internal/admin"
)

// kvCmd is about what engines have cached.
type kvCmd struct {
	Stats    kvStatsCmd    `cmd:"" help:"What every endpoint has cached, by tier, and how well it is known."`
	Where    kvWhereCmd    `cmd:"" help:"Who has a prompt, or the last prompt of a session, cached."`
	Prefetch kvPrefetchCmd `cmd:"" help:"Have a prompt cached before it is asked."`
	Pin      kvPinCmd      `cmd:"" help:"Keep a prompt cached, and put it back when it is evicted."`
	Unpin    kvUnpinCmd    `cmd:"" help:"Let go of a pin."`
	Pins     kvPinsCmd     `cmd:"" help:"What is kept cached: pinned, declared by clients, or hot."`
	Clear    kvClearCmd    `cmd:"" help:"Empty the caches of endpoints."`
	Quota    kvQuotaCmd    `cmd:"" help:"Show or set how many tokens tenants may have kept."`
}

// send is get for other methods: v goes as JSON, nil for no body.
func (a askFlags) send(ctx context.Context, method, path string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if v == nil {
		body = nil
	}
	return a.do(ctx, method, path, bytes.NewReader(body))
}

// ask sends v and reads the answer into out, or prints it as it came with --json.
// It reports whether out is still to be told.
func (a askFlags) ask(ctx context.Context, s streams, method, path string, v, out any) (bool, error) {
	raw, err := a.send(ctx, method, path, v)
	if err != nil {
		return false, err
	}
	if a.JSON {
		_, err := s.Out.Write(raw)
		return false, err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return false, fmt.Errorf("answer of %s: %w", a.Admin, err)
	}
	return true, nil
}

// kvPool says which pool is meant.
type kvPool struct {
	Pool string `placeholder:"NAME" help:"Pool; not needed where there is only one."`
}

func (p kvPool) query() string {
	if p.Pool == "" {
		return ""
	}
	return "?pool=" + url.QueryEscape(p.Pool)
}

// kvPrompt names a prompt.
type kvPrompt struct {
	kvPool
	Of      string `arg:"" optional:"" help:"A session (prompt_cache_key), the id of a late request, or the text of a prompt; \"-\" reads a prompt from standard input."`
	Model   string `placeholder:"NAME" help:"Model that is asked; that of the pool by default."`
	Tenant  string `placeholder:"NAME" help:"Tenant whose it is."`
	Chat    bool   `help:"The text is a user's message of a chat; without, it is a prompt for completion."`
	Session string `placeholder:"NAME" help:"A session, and nothing else of that name."`
	Request string `placeholder:"ID" help:"A late request."`
	File    string `type:"existingfile" placeholder:"FILE" help:"A whole request as JSON, with system prompt, tools and all."`
}

// stdin is where a prompt of "-" comes from; tests have their own.
type promptReader interface{ Read([]byte) (int, error) }

// target turns the flags into what is asked.
func (p kvPrompt) target(stdin promptReader) (admin.KVTarget, error) {
	t := admin.KVTarget{Pool: p.Pool, Model: p.Model, Tenant: p.Tenant, Session: p.Session, Request: p.Request}
	text := p.Of
	if text == "-" {
		raw, err := io.ReadAll(stdin)
		if err != nil {
			return t, fmt.Errorf("read the prompt: %w", err)
		}
		text = string(raw)
	}
	switch {
	case p.File != "":
		raw, err := os.ReadFile(p.File)
		if err != nil {
			return t, err
		}
		if !json.Valid(raw) {
			return t, fmt.Errorf("--file %s: not JSON", p.File)
		}
		t.Body = raw
	case text != "" && p.Chat:
		raw, err := json.Marshal([]map[string]string{{"role": "user", "content": text}})
		if err != nil {
			return t, err
		}
		t.Messages = raw
	case p.Of == "-":
		t.Prompt = text
	default:
		t.Of = text
	}
	if p.Of == "" && p.File == "" && p.Session == "" && p.Request == "" {
		return t, errors.New("name a prompt: a session, a request id or the text itself, or use --file")
	}
	return t, nil
}

type kvStatsCmd struct {
	kvPool
	askFlags
}

// Help shows examples.
func (kvStatsCmd) Help() string {
	return `Examples:
  penstock kv stats
  penstock kv stats --pool llama --json`
}

// Run prints a table for each pool.
func (c *kvStatsCmd) Run(ctx context.Context, s streams) error {
	var v admin.KVStatus
	if ok, err := c.ask(ctx, s, http.MethodGet, "/api/kv"+c.query(), nil, &v); !ok {
		return err
	}
	for i := range v.Pools {
		printKVPool(s.Out, &v.Pools[i])
	}
	return nil
}

type kvWhereCmd struct {
	kvPrompt
	askFlags
}

// Help shows examples.
func (kvWhereCmd) Help() string {
	return `Examples:
  penstock kv where agent-42                       the last prompt of the session (prompt_cache_key) agent-42
  penstock kv where req-1a2b3c                     a late request
  penstock kv where --chat "You are a helpful …"   a prompt, as a chat
  penstock kv where --file request.json --json`
}

// Run prints who has the prompt.
func (c *kvWhereCmd) Run(ctx context.Context, s streams) error {
	t, err := c.target(os.Stdin)
	if err != nil {
		return err
	}
	var v admin.KVWhere
	if ok, err := c.ask(ctx, s, http.MethodPost, "/api/kv/where", t, &v); !ok {
		return err
	}
	printWhere(s.Out, &v)
	return nil
}

// kvPlaces say where something shall be.
type kvPlaces struct {
	Endpoint []string `placeholder:"NAME" help:"Endpoints, or all; by default as many as --copies says, of those that lack it."`
	Copies   int      `default:"1" placeholder:"N" help:"Endpoints that shall have it."`
}

// slowFlags are askFlags for what takes as long as engines take.
type slowFlags struct {
	Admin      string        `default:"http://127.0.0.1:9090" help:"Admin address of the gateway."`
	AdminToken string        `placeholder:"TOKEN" help:"Its bearer token."`
	JSON       bool          `name:"json" help:"Print the gateway's JSON answer."`
	Timeout    time.Duration `default:"3m" help:"Give up after so long."`
}

func (f slowFlags) flags() askFlags { return askFlags(f) }

type kvPrefetchCmd struct {
	kvPrompt
	kvPlaces
	slowFlags
}

// Help shows examples.
func (kvPrefetchCmd) Help() string {
	return `The prompt is sent with an answer of one token, in the last place of the queue.

Examples:
  penstock kv prefetch --file agent.json --endpoint all
  penstock kv prefetch --session agent-42 --endpoint gpu-3:8000
  penstock kv prefetch --chat "You are a helpful …" --copies 2`
}

// Run sends the prompt and prints what came of it.
func (c *kvPrefetchCmd) Run(ctx context.Context, s streams) error {
	t, err := c.target(os.Stdin)
	if err != nil {
		return err
	}
	var v admin.KVResults
	ok, err := c.flags().ask(ctx, s, http.MethodPost, "/api/kv/prefetch", admin.KVPrefetch{KVTarget: t, Endpoints: c.Endpoint, Copies: c.Copies}, &v)
	if !ok {
		return err
	}
	if len(v.Results) == 0 {
		fmt.Fprintln(s.Out, "enough endpoints have it already")
	}
	return printResults(s.Out, &v)
}

type kvPinCmd struct {
	kvPrompt
	kvPlaces
	For time.Duration `placeholder:"TIME" help:"Let go of it when nobody has asked for it for so long; without, it stays."`
	slowFlags
}

// Help shows examples.
func (kvPinCmd) Help() string {
	return `A pin is put back whenever it is evicted, while its endpoint is idle. Its text
stays in the gateway's memory, and ends with the process.

Examples:
  penstock kv pin --file agent.json --endpoint all
  penstock kv pin --session agent-42 --for 8h --tenant research`
}

// Run pins the prompt.
func (c *kvPinCmd) Run(ctx context.Context, s streams) error {
	t, err := c.target(os.Stdin)
	if err != nil {
		return err
	}
	r := admin.KVPin{KVPrefetch: admin.KVPrefetch{KVTarget: t, Endpoints: c.Endpoint, Copies: c.Copies}}
	if c.For > 0 {
		r.For = c.For.String()
	}
	var v admin.KVKept
	if ok, err := c.flags().ask(ctx, s, http.MethodPost, "/api/kv/pins", r, &v); !ok {
		return err
	}
	fmt.Fprintf(s.Out, "pin %d: %d tokens in pool %s; penstock kv pins shows who has it, penstock kv unpin %d lets go\n", v.ID, v.Tokens, v.Pool, v.ID)
	return nil
}

type kvUnpinCmd struct {
	ID uint64 `arg:"" help:"Of the pin, as penstock kv pins shows it."`
	kvPool
	askFlags
}

// Run lets go of a pin.
func (c *kvUnpinCmd) Run(ctx context.Context, s streams) error {
	var v map[string]string
	ok, err := c.ask(ctx, s, http.MethodDelete, "/api/kv/pins/"+strconv.FormatUint(c.ID, 10)+c.query(), nil, &v)
	if ok {
		fmt.Fprintf(s.Out, "pin %d is let go of; engines evict it when they need the room\n", c.ID)
	}
	return err
}

type kvPinsCmd struct {
	kvPool
	askFlags
}

// Run prints what is kept.
func (c *kvPinsCmd) Run(ctx context.Context, s streams) error {
	var v admin.KVKeptList
	if ok, err := c.ask(ctx, s, http.MethodGet, "/api/kv/pins"+c.query(), nil, &v); !ok {
		return err
	}
	printKept(s.Out, &v)
	return nil
}

type kvClearCmd struct {
	Endpoint []string `arg:"" help:"Endpoints by name, or all."`
	kvPool
	slowFlags
}

// Help shows examples.
func (kvClearCmd) Help() string {
	return `vLLM needs VLLM_SERVER_DEV_MODE=1 for it, SGLang has it always, others cannot.

Examples:
  penstock kv clear gpu-1:8000 gpu-2:8000
  penstock kv clear all --pool llama`
}

// Run clears caches and prints what came of it.
func (c *kvClearCmd) Run(ctx context.Context, s streams) error {
	var v admin.KVResults
	if ok, err := c.flags().ask(ctx, s, http.MethodPost, "/api/kv/clear", admin.KVClear{Pool: c.Pool, Endpoints: c.Endpoint}, &v); !ok {
		return err
	}
	return printResults(s.Out, &v)
}

type kvQuotaCmd struct {
	Set     map[string]int `arg:"" optional:"" placeholder:"TENANT=TOKENS" help:"Quotas to set; those of others stay."`
	Default int            `default:"-1" placeholder:"TOKENS" help:"Set that of tenants that have none of their own."`
	kvPool
	askFlags
}

// Help shows examples.
func (kvQuotaCmd) Help() string {
	return `Quotas that are set here hold until the Fleet file is loaded again.

Examples:
  penstock kv quota
  penstock kv quota research=500000 trial=0
  penstock kv quota --default 65536`
}

// Run shows the quotas, after changing them if asked to.
func (c *kvQuotaCmd) Run(ctx context.Context, s streams) error {
	raw, err := c.get(ctx, "/api/kv/quotas"+c.query())
	if err != nil {
		return err
	}
	var v admin.KVQuotas
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Admin, err)
	}
	if len(c.Set) > 0 || c.Default >= 0 {
		if c.Default >= 0 {
			v.Default = c.Default
		}
		maps.Copy(v.Tenants, c.Set)
		v.Used = nil
		if raw, err = c.send(ctx, http.MethodPut, "/api/kv/quotas", v); err != nil {
			return err
		}
		v = admin.KVQuotas{}
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("answer of %s: %w", c.Admin, err)
		}
	}
	if c.JSON {
		_, err := s.Out.Write(raw)
		return err
	}
	printQuotas(s.Out, &v)
	return nil
}

// tierText names the tiers that have something.
func tierText(gpu, cpu, disk, shared int) string {
	var parts []string
	for _, t := range []struct {
		name string
		n    int
	}{{"gpu", gpu}, {"cpu", cpu}, {"disk", disk}, {"shared", shared}} {
		if t.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", t.n, t.name))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "-")
}
