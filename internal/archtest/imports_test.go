package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// isStd reports whether p belongs to the standard library.
func isStd(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return !strings.Contains(first, ".")
}

// within reports whether import path p is root or below it.
func within(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

// internalRoom returns the room that p imports, if it is one of this module's.
func internalRoom(p string) (string, bool) { return strings.CutPrefix(p, modulePath+"internal/") }

// checkRooms finds packages without a row in rooms.
func checkRooms(t *tree) []string {
	var out []string
	seen := map[string]bool{}
	for _, f := range t.code() {
		_, known := rooms[f.room]
		if strings.HasPrefix(f.path, "internal/") && !known && !seen[f.room] {
			seen[f.room] = true
			out = append(out, fmt.Sprintf("%s: package %s has no row in archtest/rooms_test.go", f.path, f.room))
		}
	}
	return out
}

// checkEdges finds imports between rooms that the table does not allow.
func checkEdges(t *tree) []string {
	var out []string
	for _, f := range t.code() {
		r, known := rooms[f.room]
		if !known || r.may == "*" {
			continue
		}
		may := expand(r.may)
		for _, im := range f.imports {
			to, ok := internalRoom(im.path)
			if !ok || may[to] {
				continue
			}
			msg := fmt.Sprintf("%s: %s may not import %s", t.at(im.pos), f.room, to)
			if r.why != "" {
				msg += ": " + r.why
			}
			out = append(out, msg)
		}
	}
	return out
}

// checkTruthTests finds tests of the simulated engine that read its answers with
// the code of those it stands in for.
func checkTruthTests(t *tree) []string {
	var out []string
	for _, f := range t.files {
		if !f.test || !within(f.room, "enginesim") {
			continue
		}
		for _, im := range f.imports {
			if to, ok := internalRoom(im.path); ok && slices.Contains([]string{"api", "perf", "engine", "gateway"}, to) {
				out = append(out, fmt.Sprintf("%s: a test of %s imports %s", t.at(im.pos), f.room, to))
			}
		}
	}
	return out
}

// impure is what a pure package may not import, each with the reason.
var impure = []struct{ root, why string }{
	{"context", "nothing waits or is cancelled inside a decision"},
	{"net", "a decider speaks with nobody"},
	{"log", "deciders return what happened; shells log it"},
	{"os", "files, environment and processes belong to shells"},
	{"syscall", "the machine belongs to shells"},
	{"runtime", "an answer must not depend on the machine or the collector"},
	{"sync", "a brain has one caller; the shell around it locks"},
	{"crypto/rand", "randomness comes from a stat.Rand with a seed, or no run can be repeated"},
	{"math/rand", "randomness comes from a stat.Rand with a seed, or no run can be repeated"},
	{"hash/maphash", "its seed differs in every process, so a journal would not replay"},
	{"testing", "tests belong in test files"},
	{"unsafe", "nothing a decider does is worth it"},
	{"expvar", "metrics are made by obs from what deciders report"},
}

// randomHome is the one pure package that may make random streams.
const randomHome = "stat"

// checkPureImports finds imports that no pure package may have.
func checkPureImports(t *tree) []string {
	var out []string
	for _, f := range t.pure() {
		for _, im := range f.imports {
			if im.name == "." {
				out = append(out, fmt.Sprintf("%s: %s imports %s into its own names, where no rule can see what it uses", t.at(im.pos), f.room, im.path))
			}
			for _, b := range impure {
				if within(im.path, b.root) && !(b.root == "math/rand" && f.room == randomHome) {
					out = append(out, fmt.Sprintf("%s: %s imports %s: %s", t.at(im.pos), f.room, im.path, b.why))
				}
			}
			libs := strings.Fields(rooms[f.room].libs)
			if !isStd(im.path) && !strings.HasPrefix(im.path, modulePath) && !slices.Contains(libs, im.path) {
				out = append(out, fmt.Sprintf("%s: %s imports %s, which its row in archtest/rooms_test.go does not list", t.at(im.pos), f.room, im.path))
			}
		}
	}
	return out
}

// checkKube finds Kubernetes outside kube, and kube outside the root.
func checkKube(t *tree) []string {
	var out []string
	for _, f := range t.files {
		for _, im := range f.imports {
			kubernetes := within(im.path, "k8s.io") || within(im.path, "sigs.k8s.io") && !within(im.path, "sigs.k8s.io/yaml")
			if kubernetes && f.room != "kube" {
				out = append(out, fmt.Sprintf("%s: %s imports %s", t.at(im.pos), f.room, im.path))
			}
			to, ok := internalRoom(im.path)
			inside := f.room == "app" || within(f.room, "kube") || !strings.HasPrefix(f.path, "internal/")
			if ok && within(to, "kube") && !inside {
				out = append(out, fmt.Sprintf("%s: %s imports %s", t.at(im.pos), f.room, to))
			}
		}
	}
	return out
}

// checkSimNet finds network code in the simulator.
func checkSimNet(t *tree) []string {
	var out []string
	for _, f := range t.code() {
		for _, im := range f.imports {
			if within(f.room, "sim") && within(im.path, "net") {
				out = append(out, fmt.Sprintf("%s: %s imports %s", t.at(im.pos), f.room, im.path))
			}
		}
	}
	return out
}
