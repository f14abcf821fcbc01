package catalog

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Accelerator is one device's data sheet.
type Accelerator struct {
	Name      string
	Memory    float64 // bytes as the driver reports them
	Bandwidth float64 // bytes per second from memory
	FLOPs16   float64 // dense 16-bit FLOP per second
	FLOPs8    float64 // dense FP8 FLOP per second; 0 where there is none
	FLOPs4    float64 // dense FP4 FLOP per second; 0 where there is none
	Link      float64 // bytes per second to its peers, in each direction
	Domain    int     // devices that such links join
	Price     float64 // US dollars per hour: a rough public on-demand figure, for comparison only
}

// accelerators are the data sheets known without asking; the first is the
// default.
var accelerators = []Accelerator{
	{"H100", 85.5e9, 3.35e12, 989.5e12, 1979e12, 0, 450e9, 8, 3.0},
	{"A100", 85.1e9, 2.04e12, 312e12, 0, 0, 300e9, 8, 1.8},
	{"L40S", 48.3e9, 0.864e12, 362e12, 733e12, 0, 32e9, 8, 1.2},
	{"H200", 150.1e9, 4.8e12, 989.5e12, 1979e12, 0, 450e9, 8, 3.8},
	{"B200", 192.3e9, 8.0e12, 2250e12, 4500e12, 9000e12, 900e9, 8, 5.5},
	{"B300", 288.4e9, 8.0e12, 2250e12, 4500e12, 13500e12, 900e9, 8, 6.5},
	{"GB200", 198.7e9, 8.0e12, 2500e12, 5000e12, 10000e12, 900e9, 72, 6.5},
	{"MI300X", 206.1e9, 5.3e12, 1307e12, 2615e12, 0, 448e9, 8, 2.5},
	{"TPU v5e", 17.2e9, 0.819e12, 197e12, 0, 0, 200e9, 256, 1.2},
	{"TPU v6e", 34.4e9, 1.64e12, 918e12, 0, 0, 400e9, 256, 2.7},
	{"TPU v7", 206.2e9, 7.37e12, 2307e12, 4614e12, 0, 600e9, 9216, 12},
	{"Gaudi 3", 137.4e9, 3.7e12, 1678e12, 1678e12, 0, 525e9, 8, 2.5},
}

// Accelerators returns the data sheets known without asking, the default first.
func Accelerators() []Accelerator { return slices.Clone(accelerators) }

func namesOf(list []Accelerator) []string {
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = a.Name
	}
	return names
}

// FindAccelerator returns the known data sheet that name means: see FindIn.
func FindAccelerator(name string) (Accelerator, error) { return FindIn(accelerators, name) }

// otherSheet are words of a product's name that mean another data sheet than
// the bare name does.
var otherSheet = [...]string{"pcie", "nvl", "40gb"}

// FindIn returns the accelerator of list that name means. Names are compared by
// their words, without regard to case and to further words, so that
// "H100-SXM-80GB" and "NVIDIA H100 80GB HBM3" both mean H100; but variants with
// another data sheet (PCIe, NVL, 40 GB) are only found by their own name. The
// empty name finds the first of list.
func FindIn(list []Accelerator, name string) (Accelerator, error) {
	asked := words(name)
	for _, a := range list {
		if name == "" || strings.EqualFold(name, a.Name) {
			return a, nil
		}
	}
	for _, a := range list {
		known := words(a.Name)
		other := slices.ContainsFunc(otherSheet[:], func(w string) bool { return slices.Contains(asked, w) && !slices.Contains(known, w) })
		if !other && len(known) > 0 && containsRun(asked, known) {
			return a, nil
		}
	}
	return Accelerator{}, fmt.Errorf("accelerator: %q is not known; use one of %s", name, strings.Join(namesOf(list), ", "))
}

// Peak returns the dense FLOP per second at a precision. Where a format has no
// arithmetic of its own it is computed in the next wider one that has.
func (a Accelerator) Peak(p Precision) float64 {
	switch {
	case p == FP4 && a.FLOPs4 > 0:
		return a.FLOPs4
	case (p == FP4 || p == FP8) && a.FLOPs8 > 0:
		return a.FLOPs8
	default:
		return a.FLOPs16
	}
}

// sheet is an accelerator as users write it, in the units of data sheets.
type sheet struct {
	Name          string  `json:"name"`
	MemoryGB      float64 `json:"memoryGB"`
	BandwidthGBps float64 `json:"bandwidthGBps"`
	TFLOPS16      float64 `json:"tflops16"`
	TFLOPS8       float64 `json:"tflops8"`
	TFLOPS4       float64 `json:"tflops4"`
	LinkGBps      float64 `json:"linkGBps"`
	LinkDomain    int     `json:"linkDomain"`
	PricePerHour  float64 `json:"pricePerHour"`
}

// ParseAccelerators reads data sheets from YAML: a list under "accelerators"
// with name, memoryGB, bandwidthGBps, tflops16 and, where there are any,
// tflops8, tflops4, linkGBps, linkDomain and pricePerHour (units of 10^9 bytes,
// 10^12 FLOP and US dollars). It returns the known accelerators with those read
// added in front, or in place of those of the same name. Errors name the entry
// and the field.
func ParseAccelerators(text []byte) ([]Accelerator, error) {
	var doc struct {
		Accelerators []sheet `json:"accelerators"`
	}
	if err := yaml.UnmarshalStrict(text, &doc); err != nil {
		return nil, fmt.Errorf("reading accelerators: %w", err)
	}
	var read []Accelerator
	for i, s := range doc.Accelerators {
		a, err := s.accelerator()
		if err != nil {
			return nil, fmt.Errorf("accelerators[%d].%w", i, err)
		}
		if slices.ContainsFunc(read, func(b Accelerator) bool { return strings.EqualFold(a.Name, b.Name) }) {
			return nil, fmt.Errorf("accelerators[%d].name: %q is there twice", i, a.Name)
		}
		read = append(read, a)
	}
	for _, a := range accelerators {
		if !slices.ContainsFunc(read, func(b Accelerator) bool { return strings.EqualFold(a.Name, b.Name) }) {
			read = append(read, a)
		}
	}
	return read, nil
}

// accelerator checks what a user wrote.
func (s sheet) accelerator() (Accelerator, error) {
	if len(words(s.Name)) == 0 {
		return Accelerator{}, fmt.Errorf("name: missing; want letters or digits")
	}
	for _, f := range []struct {
		name        string
		value, most float64
		needed      bool
	}{
		{"memoryGB", s.MemoryGB, 1e6, true},
		{"bandwidthGBps", s.BandwidthGBps, 1e7, true},
		{"tflops16", s.TFLOPS16, 1e8, true},
		{"tflops8", s.TFLOPS8, 1e8, false},
		{"tflops4", s.TFLOPS4, 1e8, false},
		{"linkGBps", s.LinkGBps, 1e7, false},
		{"linkDomain", float64(s.LinkDomain), 1e6, false},
		{"pricePerHour", s.PricePerHour, 1e6, false},
	} {
		switch {
		case f.value == 0 && f.needed:
			return Accelerator{}, fmt.Errorf("%s: missing; want more than 0", f.name)
		case f.value < 0 || f.value > f.most || math.IsNaN(f.value):
			return Accelerator{}, fmt.Errorf("%s: %g is not possible; want 0 to %g", f.name, f.value, f.most)
		}
	}
	return Accelerator{
		Name: s.Name, Memory: s.MemoryGB * 1e9, Bandwidth: s.BandwidthGBps * 1e9,
		FLOPs16: s.TFLOPS16 * 1e12, FLOPs8: s.TFLOPS8 * 1e12, FLOPs4: s.TFLOPS4 * 1e12,
		Link: s.LinkGBps * 1e9, Domain: max(s.LinkDomain, 1), Price: s.PricePerHour,
	}, nil
}
