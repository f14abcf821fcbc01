package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// How much fits into one head.
const (
	maxFuncLines = 80
	maxFileLines = 700
)

// checkFuncLines finds functions that do not fit on a screen.
func checkFuncLines(t *tree) []string {
	var out []string
	for _, f := range t.code() {
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && t.lines(fn) > maxFuncLines {
				out = append(out, fmt.Sprintf("%s: %s has %d lines, the limit is %d", t.at(fn.Pos()), fn.Name.Name, t.lines(fn), maxFuncLines))
			}
		}
	}
	return out
}

// checkFileLines finds files that tell more than one story.
func checkFileLines(t *tree) []string {
	var out []string
	for _, f := range t.code() {
		if n := strings.Count(string(t.texts[f.path]), "\n"); n > maxFileLines {
			out = append(out, fmt.Sprintf("%s: %d lines, the limit is %d", f.path, n, maxFileLines))
		}
	}
	return out
}

// checkPackageDoc finds packages with no package comment, with several, or with
// one that does not begin with the package's name.
func checkPackageDoc(t *tree) []string {
	docs, names := map[string][]string{}, map[string]string{}
	for _, f := range t.files {
		if f.test {
			continue
		}
		dir := path.Dir(f.path)
		names[dir] = f.syntax.Name.Name
		if f.syntax.Doc != nil {
			docs[dir] = append(docs[dir], f.syntax.Doc.Text())
		}
	}
	var out []string
	for _, dir := range slices.Sorted(maps.Keys(names)) {
		switch {
		case len(docs[dir]) != 1:
			out = append(out, fmt.Sprintf("%s: %d files carry a package comment, want one", dir, len(docs[dir])))
		case names[dir] == "main" && !strings.HasPrefix(docs[dir][0], "Command "+path.Base(dir)+" "):
			out = append(out, fmt.Sprintf("%s: the comment should begin with \"Command %s\"", dir, path.Base(dir)))
		case names[dir] != "main" && !strings.HasPrefix(docs[dir][0], "Package "+names[dir]+" "):
			out = append(out, fmt.Sprintf("%s: the comment should begin with \"Package %s\"", dir, names[dir]))
		}
	}
	return out
}

// checkInit finds init functions.
func checkInit(t *tree) []string {
	var out []string
	for _, f := range t.files {
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && fn.Name.Name == "init" && !ast.IsGenerated(f.syntax) {
				out = append(out, t.at(fn.Pos())+": an init function")
			}
		}
	}
	return out
}

// checkExit finds code outside cmd that ends the process.
func checkExit(t *tree) []string {
	var out []string
	for _, f := range t.code() {
		if !strings.HasPrefix(f.path, "internal/") {
			continue
		}
		f.uses("os", func(name string, pos token.Pos) {
			if name == "Exit" {
				out = append(out, fmt.Sprintf("%s: %s ends the process", t.at(pos), f.room))
			}
		})
		f.uses("log", func(name string, pos token.Pos) {
			if strings.HasPrefix(name, "Fatal") {
				out = append(out, fmt.Sprintf("%s: %s ends the process", t.at(pos), f.room))
			}
		})
	}
	return out
}

// replaceLine is a replace directive, alone or opening a block.
var replaceLine = regexp.MustCompile(`^\s*replace[\s(]`)

// checkReplace finds replace directives in any go.mod.
func checkReplace(t *tree) []string {
	return t.grep(replaceLine, "a replace directive", func(p string) bool { return path.Base(p) == "go.mod" })
}

// machinePath is an absolute path that means something on one machine only.
var machinePath = regexp.MustCompile(`(^|[^\w.~/-])/(work|home/\w+|Users/\w+|root/go)/`)

// checkMachinePaths finds paths of the machine somebody worked on.
func checkMachinePaths(t *tree) []string {
	return t.grep(machinePath, "a path of one machine", func(string) bool { return true })
}

// unfinished are the marks of work left for later. They are spelled apart here,
// so that this file is not its own first finding.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)

// checkUnfinished finds marks of work left for later in Go files.
func checkUnfinished(t *tree) []string {
	return t.grep(unfinished, "a mark of unfinished work", func(p string) bool { return strings.HasSuffix(p, ".go") })
}

// grep finds the lines of the text files chosen by want that match re.
func (t *tree) grep(re *regexp.Regexp, what string, want func(path string) bool) []string {
	var out []string
	for _, p := range slices.Sorted(maps.Keys(t.texts)) {
		if !want(p) {
			continue
		}
		n := 0
		for line := range strings.Lines(string(t.texts[p])) {
			n++
			if re.MatchString(line) {
				out = append(out, fmt.Sprintf("%s:%d: %s", p, n, what))
			}
		}
	}
	return out
}
