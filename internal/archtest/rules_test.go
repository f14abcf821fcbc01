package archtest

import (
	"strings"
	"testing"
)

// rule is one promise of the house.
type rule struct {
	name  string
	why   string               // printed when it is broken
	check func(*tree) []string // returns what breaks it, each with its place
}

// rules are all promises, from the large to the small.
var rules = []rule{
	{"rooms", "every package has a place: which room a change belongs to is decided once, in the open, when its package is opened", checkRooms},
	{"edges", "imports run one way, {fleet, stat} <- {api, token, perf, kv, health, tenant, journal, workload} <- {route, flow, group} <- pool, " +
		"with scale and enginesim beside it and shells outside, so that every decider can be read, tested and simulated without the rest", checkEdges},
	{"truth-tests", "if the simulated engine were tested with the code that reads it, both could misread the wire alike", checkTruthTests},
	{"pure-imports", "the gateway and the simulator drive the same deciders: what touches the world cannot be simulated, and what differs between runs cannot be replayed", checkPureImports},
	{"clock", "time is a parameter: a decider that reads the clock cannot run a day in a second, and its journal does not replay", checkClock},
	{"random", "equal seeds must give equal runs: draw from a stat.Rand that the caller hands in", checkRandom},
	{"goroutines", "a decider has one caller and no thread of its own; concurrency belongs to the shell, where it can be seen", checkGoroutines},
	{"speech", "what a decider has to say it returns; writing to the process's output is for commands", checkSpeech},
	{"package-vars", "two brains in one process must not share anything that changes, or simulating many pools at once is impossible", checkPackageVars},
	{"kube", "Kubernetes is one room, so that everything else builds, tests and runs without it", checkKube},
	{"sim-net", "a simulator that can open a socket will one day wait for one", checkSimNet},
	{"pool-handlers", "the brain answers each event in one place, found by its name", checkPoolHandlers},
	{"pool-numbers", "pool composes deciders: a number in it would be a formula or a tunable that belongs to route, flow, health, kv or perf, where it is named, defended and configured", checkPoolNumbers},
	{"pool-tables", "the brain keeps two tables, requests and endpoints; what else must be remembered belongs to the decider that asks for it", checkPoolTables},
	{"function-length", "a function fits on a screen and holds one thought", checkFuncLines},
	{"file-length", "a file tells one story in reading order", checkFileLines},
	{"package-doc", "a package is a noun with a sentence, and there is one place to read it", checkPackageDoc},
	{"init", "nothing runs before main: what exists was made by somebody who can be found", checkInit},
	{"exit", "only commands end the process, so that everything else can be embedded and its shutdown tested", checkExit},
	{"replace", "what others build from this module is what is built here", checkReplace},
	{"machine-paths", "a path of one machine works for one person", checkMachinePaths},
	{"unfinished", "unfinished work is an issue with an owner, not a mark that is never read again", checkUnfinished},
}

// TestRules holds the module to every rule.
func TestRules(t *testing.T) {
	house := load(t, "../..")
	if len(house.pure()) == 0 || len(house.poolEvents()) == 0 {
		t.Fatal("no pure package and no pool found: the rules would hold nothing")
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			if broken := r.check(house); len(broken) > 0 {
				t.Errorf("%s\n\t%s", r.why, strings.Join(broken, "\n\t"))
			}
		})
	}
}

// TestRulesCanFail shows every rule sources that break it, which it must find,
// and sources that come close, which it must leave alone.
func TestRulesCanFail(t *testing.T) {
	broken := map[string]bool{}
	for _, e := range examples {
		t.Run(e.rule+"/"+e.name, func(t *testing.T) {
			var found []string
			for _, r := range rules {
				if r.name == e.rule {
					found = r.check(parse(t, e.sources()))
				}
			}
			switch {
			case e.want == "" && len(found) > 0:
				t.Errorf("found fault with\n%s\n\t%s", e.source, strings.Join(found, "\n\t"))
			case e.want != "" && !strings.Contains(strings.Join(found, "\n"), e.want):
				t.Errorf("in\n%s\nfound %q, want %q", e.source, found, e.want)
			}
		})
		broken[e.rule] = broken[e.rule] || e.want != ""
	}
	for _, r := range rules {
		if !broken[r.name] {
			t.Errorf("no example breaks rule %q: can it fail at all?", r.name)
		}
	}
}

// TestRoomsTable checks the table itself: groups and rooms it names exist, the
// order has no cycle, and nothing impure is let into a pure room.
func TestRoomsTable(t *testing.T) {
	for name, r := range rooms {
		for to := range expand(r.may) {
			target, known := rooms[to]
			switch {
			case to == "*":
			case !known:
				t.Errorf("%s may import %s, which has no row", name, to)
			case r.pure && !target.pure:
				t.Errorf("%s is pure and may import %s, which is not", name, to)
			case reaches(to, name, map[string]bool{}):
				t.Errorf("%s may import %s, from which the way leads back", name, to)
			}
		}
	}
	for _, pair := range [][2]string{{"scale", "pool"}, {"pool", "scale"}, {"enginesim", "perf"}, {"gateway", "enginesim"}, {"gateway", "sim"}, {"fleet", "stat"}} {
		if reaches(pair[0], pair[1], map[string]bool{}) && rooms[pair[0]].pure || expand(rooms[pair[0]].may)[pair[1]] {
			t.Errorf("the table lets %s reach %s", pair[0], pair[1])
		}
	}
}

// reaches reports whether the table lets from import to, directly or not.
func reaches(from, to string, seen map[string]bool) bool {
	if seen[from] {
		return false
	}
	seen[from] = true
	for next := range expand(rooms[from].may) {
		if next == to || reaches(next, to, seen) {
			return true
		}
	}
	return false
}
