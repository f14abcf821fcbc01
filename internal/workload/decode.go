package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// problems gathers everything wrong with a file, so that one reading tells all.
type problems struct{ list []string }

func (p *problems) add(path, format string, args ...any) {
	p.list = append(p.list, path+": "+fmt.Sprintf(format, args...))
}

// err joins the problems into one error, or nil when there are none.
func (p *problems) err() error {
	var errs []error
	for _, s := range p.list {
		errs = append(errs, errors.New(s))
	}
	return errors.Join(errs...)
}

// object is one mapping of a YAML document being decoded. Each field is asked
// for by name once; what nobody asked for is unknown, and refused by close.
type object struct {
	path   string
	fields map[string]any
	asked  []string
	p      *problems
}

// parseYAML reads one document into an object. Duplicate keys are refused.
func parseYAML(data []byte, p *problems) (*object, error) {
	js, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("read workload YAML: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(js))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read workload YAML: %w", err)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("read workload YAML: want a mapping with data, load and api, got %s", kindOf(v))
	}
	return &object{fields: m, p: p}, nil
}

// at is the path of a field, as shown to the user.
func (o *object) at(name string) string {
	if o.path == "" {
		return name
	}
	return o.path + "." + name
}

// get returns the first of the names that is present and not null, and the name
// it was found under. Two spellings of one field at once are a problem.
func (o *object) get(names ...string) (string, any) {
	found, val := names[0], any(nil)
	for _, n := range names {
		o.asked = append(o.asked, n)
		v, ok := o.fields[n]
		if !ok || v == nil {
			continue
		}
		if val != nil {
			o.p.add(o.at(n), "is another spelling of %s; give one of them", found)
			continue
		}
		found, val = n, v
	}
	return found, val
}

// close reports the fields nobody asked for.
func (o *object) close() {
	var unknown []string
	for k := range o.fields {
		if !slices.Contains(o.asked, k) {
			unknown = append(unknown, k)
		}
	}
	slices.Sort(unknown)
	for _, k := range unknown {
		o.p.add(o.at(k), "unknown field; known here: %s", strings.Join(o.known(), ", "))
	}
}

func (o *object) known() []string {
	k := slices.Clone(o.asked)
	slices.Sort(k)
	return slices.Compact(k)
}

// object returns the named mapping, or nil when it is absent.
func (o *object) object(name string) *object {
	name, v := o.get(name)
	if v == nil {
		return nil
	}
	return o.child(o.at(name), v)
}

func (o *object) child(path string, v any) *object {
	m, ok := v.(map[string]any)
	if !ok {
		o.p.add(path, "want a mapping, got %s", kindOf(v))
		return nil
	}
	return &object{path: path, fields: m, p: o.p}
}

// int returns the named integer within lo..hi, or def when it is absent.
func (o *object) int(def, lo, hi int, names ...string) int {
	name, v := o.get(names...)
	if v == nil {
		return def
	}
	n, ok := v.(json.Number)
	i, err := n.Int64()
	if !ok || err != nil {
		o.p.add(o.at(name), "want an integer, got %s", kindOf(v))
		return def
	}
	if i < int64(lo) || i > int64(hi) {
		o.p.add(o.at(name), "want %d..%d, got %d", lo, hi, i)
		return def
	}
	return int(i)
}

// float returns the named number within lo..hi, or def when it is absent.
func (o *object) float(def, lo, hi float64, names ...string) float64 {
	name, v := o.get(names...)
	if v == nil {
		return def
	}
	n, ok := v.(json.Number)
	f, err := n.Float64()
	if !ok || err != nil || math.IsInf(f, 0) {
		o.p.add(o.at(name), "want a number, got %s", kindOf(v))
		return def
	}
	if f < lo || f > hi {
		o.p.add(o.at(name), "want %v..%v, got %v", lo, hi, f)
		return def
	}
	return f
}

// bool returns the named truth value, or def when it is absent.
func (o *object) bool(def bool, name string) bool {
	name, v := o.get(name)
	if v == nil {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		o.p.add(o.at(name), "want true or false, got %s", kindOf(v))
		return def
	}
	return b
}

// str returns the named text, or def when it is absent.
func (o *object) str(def, name string) string {
	name, v := o.get(name)
	if v == nil {
		return def
	}
	s, ok := v.(string)
	if !ok {
		o.p.add(o.at(name), "want text, got %s", kindOf(v))
		return def
	}
	return s
}

// choice is str restricted to the given values.
func (o *object) choice(def, name string, values ...string) string {
	s := o.str(def, name)
	if !slices.Contains(values, s) {
		o.p.add(o.at(name), "want one of %s, got %q", strings.Join(values, ", "), s)
		return def
	}
	return s
}

// refuse reports a field whose presence would change the load in a way that is
// not offered here.
func (o *object) refuse(why string, names ...string) {
	for _, n := range names {
		if _, v := o.get(n); v != nil {
			o.p.add(o.at(n), "not supported: %s", why)
		}
	}
}

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case bool:
		return fmt.Sprintf("%t", v)
	case json.Number:
		return v.String()
	case string:
		return fmt.Sprintf("%.40q", v)
	case []any:
		return "a list"
	default:
		return "a mapping"
	}
}
