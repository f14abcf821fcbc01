package archtest

import "strings"

// example is source that a rule must find fault with, or must not when want is
// empty.
type example struct {
	rule, name string
	want       string // part of what is found
	source     string // files, each after a line "-- path --"
}

// sources returns the files of an example by path.
func (e example) sources() map[string]string {
	out := map[string]string{}
	current := ""
	for line := range strings.Lines(e.source) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok {
			current = strings.TrimSuffix(name, " --")
			continue
		}
		if current != "" {
			out[current] += line
		}
	}
	return out
}

// pureFile is an example's source: one file of a pure package with this body.
func pureFile(body string) string { return "-- internal/route/a.go --\npackage route\n" + body }

// importing is an example's source: a file of one room that imports a path.
func importing(room, path string) string {
	return "-- internal/" + room + "/a.go --\npackage a\nimport _ \"" + path + "\"\n"
}

// edge is an example's source: a file of one room that imports another.
func edge(from, to string) string { return importing(from, modulePath+"internal/"+to) }

// examples show what each rule is about.
var examples = []example{
	{"rooms", "unknown", "misc has no row", importing("misc", "fmt")},
	{"rooms", "command", "", "-- cmd/tool/main.go --\npackage main\n"},

	{"edges", "nouns lean on nothing", "fleet may not import stat", edge("fleet", "stat")},
	{"edges", "upwards", "kv may not import route", edge("kv", "route")},
	{"edges", "sideways", "perf may not import health", edge("perf", "health")},
	{"edges", "where and when", "route may not import flow", edge("route", "flow")},
	{"edges", "planner and brain", "scale may not import pool", edge("scale", "pool")},
	{"edges", "brain and planner", "pool may not import scale", edge("pool", "scale")},
	{"edges", "truth from belief", "enginesim may not import perf", edge("enginesim", "perf")},
	{"edges", "belief from truth", "perf may not import enginesim", edge("perf", "enginesim")},
	{"edges", "pure from shell", "pool may not import live", edge("pool", "live")},
	{"edges", "shared wire code", "enginesim/server may not import api", edge("enginesim/server", "api")},
	{"edges", "front and simulator", "gateway may not import sim", edge("gateway", "sim")},
	{"edges", "front and simulated engine", "gateway may not import enginesim", edge("gateway", "enginesim")},
	{"edges", "shell to shell", "engine may not import gateway", edge("engine", "gateway")},
	{"edges", "the root from below", "admin may not import app", edge("admin", "app")},
	{"edges", "allowed", "", edge("api", "kv") + edge("pool", "route") + edge("gateway", "engine") + edge("app", "enginesim/server")},
	{"edges", "tests may", "", "-- internal/route/a_test.go --\npackage route\nimport _ \"" + modulePath + "internal/flow\"\n"},

	{"truth-tests", "reading with api", "a test of enginesim/server imports api", "-- internal/enginesim/server/a_test.go --\npackage server\nimport _ \"" + modulePath + "internal/api\"\n"},

	{"pure-imports", "context", "route imports context", importing("route", "context")},
	{"pure-imports", "network", "flow imports net/http", importing("flow", "net/http")},
	{"pure-imports", "log", "kv imports log/slog", importing("kv", "log/slog")},
	{"pure-imports", "files", "workload imports os", importing("workload", "os")},
	{"pure-imports", "locks", "pool imports sync/atomic", importing("pool", "sync/atomic")},
	{"pure-imports", "random", "route imports math/rand/v2", importing("route", "math/rand/v2")},
	{"pure-imports", "random seeds of the process", "kv imports hash/maphash", importing("kv", "hash/maphash")},
	{"pure-imports", "dot", "into its own names", pureFile("import . \"time\"\n")},
	{"pure-imports", "metrics", "perf imports github.com/prometheus/client_golang/prometheus", importing("perf", "github.com/prometheus/client_golang/prometheus")},
	{"pure-imports", "another room's library", "route imports github.com/cespare/xxhash/v2", importing("route", "github.com/cespare/xxhash/v2")},
	{"pure-imports", "allowed", "", importing("kv", "github.com/cespare/xxhash/v2") + importing("stat", "math/rand/v2") + importing("gateway", "net/http")},

	{"clock", "now", "time.Now", pureFile("import \"time\"\nfunc f() time.Time { return time.Now() }\n")},
	{"clock", "renamed", "time.AfterFunc", pureFile("import chronos \"time\"\nfunc f() { chronos.AfterFunc(0, nil) }\n")},
	{"clock", "not called", "time.Since", pureFile("import \"time\"\nvar f = time.Since\n")},
	{"clock", "types", "", pureFile("import \"time\"\nfunc f(d time.Duration) time.Time { return time.Unix(0, 0).Add(d * time.Second) }\n")},
	{"clock", "shells", "", "-- internal/live/a.go --\npackage live\nimport \"time\"\nvar f = time.Now\n"},

	{"random", "global", "rand.IntN", "-- internal/stat/a.go --\npackage stat\nimport \"math/rand/v2\"\nfunc f() int { return rand.IntN(6) }\n"},
	{"random", "seeded", "", "-- internal/stat/a.go --\npackage stat\nimport \"math/rand/v2\"\nfunc f() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }\n"},

	{"goroutines", "go", "a go statement", pureFile("func f() { go f() }\n")},
	{"goroutines", "select", "a select statement", pureFile("func f() { select {} }\n")},
	{"goroutines", "channel", "a channel", pureFile("type t struct{ c chan int }\n")},
	{"goroutines", "send", "a send", pureFile("func f(c C) { c <- 1 }\n")},
	{"goroutines", "receive", "a receive", pureFile("func f(c C) { <-c }\n")},

	{"speech", "fmt", "fmt.Println", pureFile("import \"fmt\"\nfunc f() { fmt.Println() }\n")},
	{"speech", "builtin", "println", pureFile("func f() { println() }\n")},
	{"speech", "strings", "", pureFile("import \"fmt\"\nfunc f() error { return fmt.Errorf(\"no\") }\n")},

	{"package-vars", "no value", "no value until", pureFile("var n int\n")},
	{"package-vars", "counter", "no table", pureFile("var n = 0\n")},
	{"package-vars", "call", "a call that may return anything", pureFile("var t = newTable()\n")},
	{"package-vars", "exported", "any package can change", pureFile("var T = map[string]int{}\n")},
	{"package-vars", "pool", "no table", pureFile("import \"sync\"\nvar p = &sync.Pool{}\n")},
	{"package-vars", "write", "writes the package variable t", pureFile("var t = map[string]int{}\nfunc f() { t[\"a\"] = 1 }\n")},
	{"package-vars", "write elsewhere", "b.go:2: route writes the package variable t", pureFile("var t = []int{1}\n") + "-- internal/route/b.go --\npackage route\nfunc f() { t[0]++ }\n"},
	{"package-vars", "delete", "deletes in the package variable t", pureFile("var t = map[string]int{}\nfunc f() { delete(t, \"a\") }\n")},
	{"package-vars", "address", "takes the address of the package variable t", pureFile("var t = [...]int{1}\nfunc f() *int { return &t[0] }\n")},
	{"package-vars", "sentinels and tables", "", pureFile(`import ("errors"; "hash/crc32")
var ErrNo = errors.New("no")
var names = [...]string{"a"}
var table = crc32.MakeTable(crc32.Castagnoli)
var _ I = T{}
func f() { names := []string{}; names[0] = "b"; _ = names }
`)},

	{"kube", "library", "gateway imports k8s.io/client-go/rest", importing("gateway", "k8s.io/client-go/rest")},
	{"kube", "extension", "epp imports sigs.k8s.io/gateway-api-inference-extension/api", importing("epp", "sigs.k8s.io/gateway-api-inference-extension/api")},
	{"kube", "room", "control imports kube", edge("control", "kube")},
	{"kube", "allowed", "", importing("kube", "k8s.io/api/core/v1") + importing("config", "sigs.k8s.io/yaml") + edge("app", "kube")},

	{"sim-net", "http", "sim imports net/http", importing("sim", "net/http")},

	{"pool-handlers", "missing", "event Tick has 0 handlers", "-- internal/pool/a.go --\npackage pool\nfunc (*Tick) isEvent() {}\n"},
	{"pool-handlers", "never called", "Step calls onTick 0 times", "-- internal/pool/a.go --\npackage pool\nfunc (*Tick) isEvent() {}\nfunc (b *Brain) onTick() {}\n"},
	{"pool-handlers", "called elsewhere", "other calls the handler onTick", "-- internal/pool/a.go --\npackage pool\nfunc (*Tick) isEvent() {}\nfunc (b *Brain) onTick() {}\nfunc (b *Brain) other() { b.onTick() }\n"},
	{"pool-handlers", "no event", "onMoon handles no event", "-- internal/pool/a.go --\npackage pool\nfunc (b *Brain) onMoon() {}\n"},
	{"pool-handlers", "one each", "", "-- internal/pool/a.go --\npackage pool\nfunc (*Tick) isEvent() {}\nfunc (b *Brain) onTick() {}\nfunc (b *Brain) Step() { b.onTick() }\n"},

	{"pool-numbers", "tunable", "knows the number 0.9", "-- internal/pool/a.go --\npackage pool\nconst full = 0.9\n"},
	{"pool-numbers", "formula", "knows the number 100", "-- internal/pool/a.go --\npackage pool\nfunc f(n int) int { return n / 100 }\n"},
	{"pool-numbers", "counting", "", "-- internal/pool/a.go --\npackage pool\nvar a = []int{0, 1, -2}\n-- internal/pool/codec.go --\npackage pool\nconst width = 8\n"},

	{"pool-tables", "a third", "something other than requests and endpoints", "-- internal/pool/a.go --\npackage pool\ntype t struct{ m map[string]int }\n"},
	{"pool-tables", "the two", "", "-- internal/pool/a.go --\npackage pool\ntype t struct{ m map[fleet.ReqID]int; n map[fleet.EndpointID]int }\n"},

	{"function-length", "long", "f has 82 lines", pureFile("func f() {\n" + strings.Repeat("\tf()\n", 80) + "}\n")},
	{"function-length", "tests", "", "-- internal/route/a_test.go --\npackage route\nfunc f() {\n" + strings.Repeat("\tf()\n", 80) + "}\n"},
	{"file-length", "long", "701 lines", pureFile(strings.Repeat("\n", 700))},

	{"package-doc", "none", "0 files carry", pureFile("")},
	{"package-doc", "two", "2 files carry", "-- internal/route/a.go --\n// Package route is.\npackage route\n-- internal/route/b.go --\n// Package route is too.\npackage route\n"},
	{"package-doc", "another name", "should begin with", "-- internal/route/a.go --\n// This routes.\npackage route\n"},
	{"package-doc", "command", "", "-- cmd/tool/main.go --\n// Command tool is.\npackage main\n"},

	{"init", "code", "an init function", pureFile("func init() {}\n")},
	{"init", "generated", "", "-- internal/route/a.go --\n// Code generated by a tool. DO NOT EDIT.\n\npackage route\nfunc init() {}\n"},
	{"init", "method", "", pureFile("func (t T) init() {}\n")},

	{"exit", "exit", "control ends the process", "-- internal/control/a.go --\npackage control\nimport \"os\"\nfunc f() { os.Exit(1) }\n"},
	{"exit", "fatal", "control ends the process", "-- internal/control/a.go --\npackage control\nimport \"log\"\nfunc f() { log.Fatalln() }\n"},
	{"exit", "command", "", "-- cmd/tool/main.go --\npackage main\nimport \"os\"\nfunc f() { os.Exit(1) }\n"},

	{"replace", "line", "go.mod:2", "-- go.mod --\nmodule m\nreplace a => b v1\n"},
	{"replace", "block", "tools/go.mod:2", "-- tools/go.mod --\nmodule m\nreplace (\n"},
	{"replace", "mention", "", "-- go.mod --\nmodule m\n// no replace here\n"},

	{"machine-paths", "checkout", "notes.md:1", "-- notes.md --\nsee `/wor" + "k/main`\n"},
	{"machine-paths", "home", "a.sh:2", "-- a.sh --\nset -e\ncd /ho" + "me/someone/x\n"},
	{"machine-paths", "links and relative paths", "", "-- notes.md --\n../wor" + "k/x, frame" + "work/x, example.org/wor" + "k/x, /root/.cache/huggingface\n"},

	{"unfinished", "mark", "a.go:2", pureFile("// TO" + "DO: more\n")},
}
