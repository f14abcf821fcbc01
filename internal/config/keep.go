package config

import (
	"time"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/kv"
)

// Keep says what is kept cached, beyond what engines keep by themselves, and what
// it may cost. Operators can pin prefixes in any case. The text of what is kept is
// held in memory, and nowhere else.
type Keep struct {
	// Declared keeps what clients declare with prompt_cache_key, prompt_cache_retention
	// and cache_control, for as long as they say.
	Declared bool `json:"declared"`
	// Hot places the prefixes that are asked for most on endpoints that come, while
	// they are idle.
	Hot bool `json:"hot"`
	// MaxBytes bounds the memory for the text of what is kept.
	MaxBytes int `json:"maxBytes"`
	// Share is how much of an endpoint's time keeping may take, 0 to 1; and only time
	// in which it is idle.
	Share float64 `json:"share"`
	// QuotaTokens is how many tokens of declared and pinned prefixes a tenant may have
	// kept.
	QuotaTokens fleet.Tokens `json:"quotaTokens"`
	// Quotas are those of tenants that have another, by name.
	Quotas map[string]fleet.Tokens `json:"quotas"`
	// MaxLife bounds the lifetimes that clients declare.
	MaxLife time.Duration `json:"maxLife"`
	// WarmTokens is how many prompt tokens an endpoint that comes is given beforehand.
	WarmTokens fleet.Tokens `json:"warmTokens"`
}

// defaultKeep lets a tenant keep half of what one 80 GB GPU caches beside a
// mid-size model, and gives a new endpoint about six seconds of prompts.
func defaultKeep() Keep {
	return Keep{Declared: true, Hot: true, MaxBytes: 16 << 20, Share: 0.05, QuotaTokens: 131_072, MaxLife: 24 * time.Hour, WarmTokens: 65_536}
}

func (k *Keep) validate(path string, errs *problems) {
	if k.MaxBytes < 1<<20 {
		errs.add(path+".maxBytes", "must be at least %d, is %d", 1<<20, k.MaxBytes)
	}
	if !(k.Share >= 0 && k.Share <= 1) {
		errs.add(path+".share", "must be from 0 to 1, is %v", k.Share)
	}
	if k.QuotaTokens < 0 {
		errs.add(path+".quotaTokens", "must not be negative, is %d", k.QuotaTokens)
	}
	for tenant, n := range k.Quotas {
		if n < 0 {
			errs.add(path+".quotas."+tenant, "must not be negative, is %d", n)
		}
	}
	if k.WarmTokens < 0 {
		errs.add(path+".warmTokens", "must not be negative, is %d", k.WarmTokens)
	}
	positive(errs, path+".maxLife", k.MaxLife)
}

// Config returns k as the keeper takes it.
func (k *Keep) Config() kv.KeepConfig {
	return kv.KeepConfig{
		Declared: k.Declared, Hot: k.Hot, MaxBytes: k.MaxBytes, Share: k.Share, Quota: k.QuotaTokens, Quotas: k.Quotas, MaxLife: k.MaxLife, WarmTokens: k.WarmTokens,
	}
}
