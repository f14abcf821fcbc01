package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"penstock.dev/penstock/internal/catalog"
	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/perf"
)

// Accelerator is the data sheet of a device that the catalogue lacks, or has
// otherwise.
type Accelerator struct {
	// Name is what variants call it; a known name replaces the known sheet.
	Name string `json:"name"`
	// MemoryGB is its memory, in 10^9 bytes.
	MemoryGB float64 `json:"memoryGB"`
	// BandwidthGBps is that of its memory, in 10^9 bytes per second.
	BandwidthGBps float64 `json:"bandwidthGBps"`
	// TFLOPS16 is its dense 16-bit arithmetic, in 10^12 FLOP per second.
	TFLOPS16 float64 `json:"tflops16"`
	// TFLOPS8 is its dense FP8 arithmetic; 0 where there is none.
	TFLOPS8 float64 `json:"tflops8"`
	// TFLOPS4 is its dense FP4 arithmetic; 0 where there is none.
	TFLOPS4 float64 `json:"tflops4"`
	// LinkGBps is the bandwidth to its peers in each direction, in 10^9 bytes per
	// second.
	LinkGBps float64 `json:"linkGBps"`
	// LinkDomain is how many devices such links join.
	LinkDomain int `json:"linkDomain"`
	// PricePerHour is in US dollars.
	PricePerHour float64 `json:"pricePerHour"`
}

// Variant is one way to serve the model of a pool. What is not given follows
// from the model's shape and the accelerator's data sheet.
type Variant struct {
	// Name is unique in the pool. Required.
	Name string `json:"name"`
	// Shape is a model of the catalogue, or the path of a model's config.json,
	// relative to the Fleet file; the pool's model by default.
	Shape string `json:"shape"`
	// Accelerator is one of the catalogue or of accelerators. Required.
	Accelerator string `json:"accelerator"`
	// TP is the number of devices that share each matrix.
	TP int `json:"tp"`
	// PP is the number of stages of layers.
	PP int `json:"pp"`
	// DP is the number of ranks with attention and KV of their own.
	DP int `json:"dp"`
	// EP is the number of groups that the experts are dealt to; 1 splits each
	// expert.
	EP int `json:"ep"`
	// Weights is their precision: bf16, fp8, int8, fp4, int4; as published by
	// default.
	Weights string `json:"weights"`
	// KV is the precision of the KV cache; bf16 by default.
	KV string `json:"kv"`
	// Kind is the engine: vllm, sglang or trtllm; vllm by default.
	Kind string `json:"engine"`
	// Replicas is how many of it are simulated; by default as many as endpoints
	// name it, at least one.
	Replicas int `json:"replicas"`
	// CostPerHour is the cost of one replica, in US dollars; by default the rough
	// price of its devices.
	CostPerHour float64 `json:"costPerHour"`
	// Profile is the path of what penstock profile wrote of such a server, relative
	// to the Fleet file: limits that are not given here come from it, and so does
	// the step time unless stepMs is given.
	Profile string `json:"profile"`

	Engine

	serving catalog.Serving // resolved when the file was loaded
	profile *Profile        // read when the file was loaded; nil for none
}

// setDefaults fills a variant before the file is decoded over it.
func (v *Variant) setDefaults() { v.TP, v.PP, v.DP, v.EP = 1, 1, 1, 1 }

// NewVariant returns a variant that is already known in the catalogue's terms.
func NewVariant(name string, s catalog.Serving) Variant {
	v := Variant{Name: name, Shape: s.Shape.Name, Accelerator: s.Accelerator.Name, Kind: s.Engine, serving: s}
	v.TP, v.PP, v.DP, v.EP = s.TP, s.PP, s.DP, s.EP
	return v
}

// Serving returns the variant in the catalogue's terms. It is valid in fleets
// that were loaded without a problem.
func (v Variant) Serving() catalog.Serving { return v.serving }

// Cost returns the cost of one replica in US dollars per hour.
func (v Variant) Cost() float64 {
	if v.CostPerHour > 0 {
		return v.CostPerHour
	}
	return v.serving.Accelerator.Price * float64(v.serving.Devices())
}

// Step returns the step time that the file states, itself or in a profile; zero if
// neither does.
func (v Variant) Step() perf.Step {
	if s := v.StepMs.Step(); s.Known() || v.profile == nil {
		return s
	}
	return v.profile.StepMs.Step()
}

// Limits returns the limits that the file states, and where it does not those of
// the profile.
func (v Variant) Limits() fleet.Limits {
	if v.profile == nil {
		return v.Engine.Limits()
	}
	return v.Engine.Limits().Merge(v.profile.Limits.FleetLimits())
}

// FindVariant returns the index of the variant that an endpoint names. An empty
// name means the only variant, if there is just one. It reports false when there
// is none.
func (p *Pool) FindVariant(name string) (int, bool) {
	if name == "" {
		return 0, len(p.Variants) == 1
	}
	for i := range p.Variants {
		if p.Variants[i].Name == name {
			return i, true
		}
	}
	return 0, false
}

// Replicas returns how many replicas of variant i are simulated.
func (p *Pool) Replicas(i int) int {
	if n := p.Variants[i].Replicas; n > 0 {
		return n
	}
	n := 0
	for _, e := range p.Endpoints {
		if at, ok := p.FindVariant(e.Variant); ok && at == i {
			n++
		}
	}
	return max(n, 1)
}

// resolve looks up what variants name, with config.json files relative to dir,
// and reports what cannot be served.
func (f *Fleet) resolve(dir string, errs *problems) {
	sheets := f.sheets(errs)
	for i := range f.Pools {
		p := &f.Pools[i]
		names := map[string]int{}
		for k := range p.Variants {
			v, path := &p.Variants[k], fmt.Sprintf("pools[%d].variants[%d]", i, k)
			if v.Name == "" {
				errs.add(path+".name", "is required")
			}
			unique(errs, path+".name", v.Name, k, names, "variants[%d]")
			v.resolve(path, p.Model, dir, sheets, errs)
		}
		for k, e := range p.Endpoints {
			if _, ok := p.FindVariant(e.Variant); e.Variant != "" && !ok {
				errs.add(fmt.Sprintf("pools[%d].endpoints[%d].variant", i, k), "the pool has no variant %q", e.Variant)
			}
		}
	}
}

// sheets returns the data sheets known and stated.
func (f *Fleet) sheets(errs *problems) []catalog.Accelerator {
	var good []Accelerator
	names := map[string]int{}
	for i, a := range f.Accelerators {
		path := fmt.Sprintf("accelerators[%d]", i)
		if _, err := readSheets([]Accelerator{a}); err != nil {
			*errs = append(*errs, fmt.Errorf("%s%s", path, strings.TrimPrefix(err.Error(), "accelerators[0]")))
			continue
		}
		if unique(errs, path+".name", strings.ToLower(a.Name), i, names, "accelerators[%d]") {
			good = append(good, a)
		}
	}
	list, err := readSheets(good)
	if err != nil {
		errs.add("accelerators", "%w", err) // each alone has been read, so this is news
	}
	return list
}

// readSheets passes data sheets through the catalogue's own reader.
func readSheets(list []Accelerator) ([]catalog.Accelerator, error) {
	text, err := json.Marshal(map[string]any{"accelerators": list}) // JSON is YAML
	if err != nil {
		return nil, err
	}
	return catalog.ParseAccelerators(text)
}

func (v *Variant) resolve(path, model, dir string, sheets []catalog.Accelerator, errs *problems) {
	before := len(*errs)
	for _, n := range []struct {
		name         string
		value, least int
	}{{"tp", v.TP, 1}, {"pp", v.PP, 1}, {"dp", v.DP, 1}, {"ep", v.EP, 1}, {"replicas", v.Replicas, 0}} {
		if n.value < n.least || n.value > maxParallel {
			errs.add(path+"."+n.name, "must be between %d and %d, is %d", n.least, maxParallel, n.value)
		}
	}
	if v.CostPerHour < 0 {
		errs.add(path+".costPerHour", "must not be negative, is %v", v.CostPerHour)
	}
	v.Engine.validate(path, errs)
	s := catalog.Serving{TP: v.TP, PP: v.PP, DP: v.DP, EP: v.EP, Engine: v.Kind}
	var err error
	if s.Weights, err = catalog.ParsePrecision(v.Weights); err != nil {
		errs.add(path+".weights", "%w", err)
	}
	if s.KV, err = catalog.ParsePrecision(v.KV); err != nil {
		errs.add(path+".kv", "%w", err)
	}
	if s.Shape, err = findShape(v.Shape, model, dir); err != nil {
		errs.add(path+".shape", "%w", err)
	}
	if v.Accelerator == "" {
		errs.add(path+".accelerator", "is required")
	} else if s.Accelerator, err = catalog.FindIn(sheets, v.Accelerator); err != nil {
		*errs = append(*errs, fmt.Errorf("%s.%w", path, err)) // it begins with the field
	}
	if len(*errs) > before {
		return
	}
	if err := s.Validate(); err != nil {
		*errs = append(*errs, fmt.Errorf("%s.%s", path, strings.Replace(err.Error(), "model: ", "shape: ", 1)))
		return
	}
	v.serving = s
	v.readProfile(path, model, dir, sheets, errs)
}

// maxParallel bounds degrees of parallelism and numbers of replicas.
const maxParallel = 1 << 14

// findShape returns the shape that a variant of a pool has.
func findShape(name, model, dir string) (catalog.Shape, error) {
	if !strings.HasSuffix(name, ".json") {
		if name == "" {
			name = model
		}
		if name == "" {
			return catalog.Shape{}, errors.New("neither it nor the pool's model is given")
		}
		s, err := catalog.FindModel(name)
		if err != nil {
			err = errors.New(strings.TrimPrefix(err.Error(), "model: "))
		}
		return s, err
	}
	text, err := readSmall(within(dir, name))
	if err != nil {
		return catalog.Shape{}, fmt.Errorf("%q: %w", name, err)
	}
	s, err := catalog.ParseConfig(text)
	if err != nil {
		return catalog.Shape{}, fmt.Errorf("%q: %w", name, err)
	}
	s.Name = name
	return s, nil
}

// within is a path that is relative to dir unless it is absolute.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// maxShapeFile bounds a config.json; published ones have some kilobytes.
const maxShapeFile = 1 << 20

// readSmall reads a regular file of bounded size.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err) // the path is told already
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxShapeFile+1))
	if err == nil && len(text) > maxShapeFile {
		err = fmt.Errorf("has more than %d bytes", maxShapeFile)
	}
	return text, err
}
