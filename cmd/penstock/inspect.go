package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"penstock.dev/penstock/internal/engine"
)

// inspectFlags say which engine check asks what it can do.
type inspectFlags struct {
	Engine      string        `placeholder:"URL" help:"Ask a real engine what it can and cannot do, with about twenty short requests."`
	Model       string        `placeholder:"NAME" help:"The model of --engine to ask (default: the first it lists)."`
	KeyEnv      string        `placeholder:"NAME" help:"Environment variable with the key of --engine."`
	AllowRemote bool          `help:"Let --engine be another machine than this one."`
	Each        time.Duration `default:"30s" help:"Time for one question to --engine."`
	JSON        bool          `name:"json" help:"Write what --engine answered as JSON."`
}

// inspect asks the engine and writes what it answered. It fails when the engine
// could not stand behind a gateway.
func (f inspectFlags) inspect(ctx context.Context, out io.Writer) error {
	base, err := engine.CheckURL(f.Engine)
	if err != nil {
		return fmt.Errorf("--engine: %w", err)
	}
	if !f.AllowRemote && !onThisMachine(base) {
		return fmt.Errorf("%s is another machine: its owner should know of the requests; --allow-remote sends them", base)
	}
	access, err := engine.NewAccess(engine.Credentials{Env: f.KeyEnv}, engine.TLS{})
	if err != nil {
		return err
	}
	client := engine.NewClient(engine.Options{Access: access, ControlTimeout: f.Each})
	defer client.Close()
	r, err := client.Inspect(ctx, base, f.Model, f.Each)
	if err != nil {
		return err
	}
	if f.JSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = writeInspection(out, r)
	}
	if err == nil && !r.Serves() {
		err = errors.New("this engine cannot stand behind a gateway: it must list models, and complete or chat")
	}
	return err
}

// onThisMachine reports whether a URL names this machine's loopback.
func onThisMachine(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

func writeInspection(out io.Writer, r *engine.Report) error {
	fmt.Fprintf(out, "%s speaks %s: %s\nmodels: %s\n", r.URL, r.Dialect, r.Because, strings.Join(r.Models, ", "))
	if len(r.Adapters) > 0 {
		fmt.Fprintf(out, "adapters: %s\n", strings.Join(r.Adapters, ", "))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nQUESTION\tANSWER\tMS\tDETAIL\n")
	count := map[engine.Answer]int{}
	for _, f := range r.Findings {
		count[f.Answer]++
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%s\n", f.Question, f.Answer, f.Millis, f.Detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%d yes, %d no, %d odd, %d unknown\n", count[engine.Yes], count[engine.No], count[engine.Odd], count[engine.Unknown])
	return err
}
