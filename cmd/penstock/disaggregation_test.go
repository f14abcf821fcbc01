package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/config"
)

// block is a fenced block of a page.
type block struct{ kind, text string }

// fenced returns the fenced blocks of a page, in order.
func fenced(t *testing.T, path string) []block {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []block
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		list = append(list, block{m[1], m[2]})
	}
	return list
}

// TestDisaggregationPage runs the commands of the page on splitting, one after the
// other, and reads its Fleet files.
func TestDisaggregationPage(t *testing.T) {
	const path = "../../docs/disaggregation.md"
	// What each command must say, by its beginning.
	says := map[string]string{
		"size":      "Best: ",
		"bench":     "30 completed, 0 failed, 0 corrupted",
		"explain":   "prompt on prefill-",
		"check":     "is in order",
		"status":    "30 done",
		"top":       "transfers of KV",
		"transfers": "TICKET",
		"role":      "",
	}
	blocks := fenced(t, path)
	connectors := map[string]bool{}
	fleet := ""
	for _, b := range blocks {
		if b.kind != "yaml" {
			continue
		}
		c, errs := config.Parse([]byte(b.text))
		if len(errs) > 0 {
			t.Fatalf("%v in\n%s", errs, b.text)
		}
		connectors[c.Pools[0].KV.Transfer.Connector] = true
		fleet = b.text
	}
	for _, k := range []string{"nixl", "nixl-push", "mooncake", "moriio", "sglang", "offload", "shared", "llm-d"} {
		if !connectors[k] {
			t.Errorf("no Fleet file for the connector %s", k)
		}
	}
	file := t.TempDir() + "/fleet.yaml"
	if err := os.WriteFile(file, []byte(fleet), 0o600); err != nil {
		t.Fatal(err)
	}
	url, admin, ran := "", "", map[string]int{}
	for _, b := range blocks {
		if b.kind != "console" {
			continue
		}
		for line := range strings.Lines(b.text) {
			command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ penstock ")
			if !ok {
				t.Fatalf("%q is no command of ours", line)
			}
			args := strings.Fields(command)
			ran[args[0]]++
			switch args[0] {
			case "up":
				// Slow enough for a split to be worth its while, and fast enough for a test.
				url, admin = up(t, append(args[1:], "--speedup", "5", "--no-access-log", "--transfer-listen", "127.0.0.1:0")...)
				continue
			case "size":
			case "bench":
				args = append(args, "--url", url)
			case "check":
				args[len(args)-1] = file
			default:
				args = append(args, "--admin", admin)
			}
			if code, out, errs := penstock(t, args...); code != 0 || !strings.Contains(out, says[args[0]]) {
				t.Errorf("%v: exit %d, want 0 and %q:\n%s%s", args, code, says[args[0]], out, errs)
			}
		}
	}
	for name := range says {
		if ran[name] == 0 {
			t.Errorf("the page has no penstock %s", name)
		}
	}
}
