// Package catalog holds facts: the shapes of models, the data sheets of
// accelerators, and what follows from them for one way to serve. It measures
// nothing and believes nothing; how fast an engine really is, is for others.
package catalog

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Precision is a number format of weights, of KV or of matrix multiplications.
// The zero Precision is not stated.
type Precision uint8

// The number formats told apart. FP4 covers MXFP4 and NVFP4.
const (
	Unstated Precision = iota
	BF16               // any 16-bit float
	FP8                // any 8-bit float
	INT8
	FP4
	INT4
)

// precisionNames are the names of the formats, in their order.
var precisionNames = [...]string{"unstated", "bf16", "fp8", "int8", "fp4", "int4"}

// String returns the name that ParsePrecision reads.
func (p Precision) String() string {
	if int(p) >= len(precisionNames) {
		return fmt.Sprintf("Precision(%d)", uint8(p))
	}
	return precisionNames[p]
}

// Bytes returns the bytes one number takes, with the scales that belong to it:
// one 8-bit scale for every 16 numbers of 4 bits. An unstated precision counts
// as 16-bit.
func (p Precision) Bytes() float64 {
	switch p {
	case FP8, INT8:
		return 1
	case FP4, INT4:
		return 0.5 + 1.0/16
	default:
		return 2
	}
}

// ParsePrecision returns the precision of a name as engines and model
// publishers write it, without regard to case: "bf16", "fp16", "fp8", "mxfp4",
// "nvfp4", "int8", "int4", "awq"; "", "auto" and "default" are Unstated.
func ParsePrecision(name string) (Precision, error) {
	switch strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), "?") {
	case "", "auto", "default", "unstated":
		return Unstated, nil
	case "bf16", "bfloat16", "fp16", "float16", "half", "16":
		return BF16, nil
	case "fp8", "fp8_e4m3", "fp8_e5m2", "float8", "mxfp8":
		return FP8, nil
	case "int8", "w8a8":
		return INT8, nil
	case "fp4", "nvfp4", "mxfp4", "modelopt_fp4":
		return FP4, nil
	case "int4", "awq", "gptq":
		return INT4, nil
	}
	return Unstated, fmt.Errorf("precision: %q is not known; use one of %s", name, strings.Join(precisionNames[1:], ", "))
}

// words splits a name at all that is neither letter nor digit, in lower case.
func words(name string) []string {
	return strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// containsRun reports whether needle stands in hay as a run of whole words.
func containsRun(hay, needle []string) bool {
	for i := 0; i+len(needle) <= len(hay); i++ {
		if slices.Equal(hay[i:i+len(needle)], needle) {
			return true
		}
	}
	return false
}
