package archtest

import "strings"

// room is a package's place in the house.
type room struct {
	// pure rooms decide: explicit time, no I/O, same inputs same outputs.
	pure bool
	// may lists the rooms it may import, and groups of rooms.
	may string
	// libs lists the modules of others that a pure room may import.
	libs string
	// why says what the row is for where the groups do not.
	why string
}

// groups are names for rooms in the may column.
var groups = map[string]string{
	"@nouns": "fleet stat",
	"@facts": "api catalog token perf kv health tenant exchange journal workload",
	"@rules": "route flow group",
	// What every shell may see: all that is pure but the simulated engines, whose
	// physics is the truth that a brain must learn rather than read.
	"@pure": "@nouns @facts @rules pool scale",
}

// rooms is the house: every package under internal, and what it may import.
// Packages outside internal (commands, end-to-end tests) may import anything.
var rooms = map[string]room{
	"fleet": {pure: true, why: "nouns lean on nothing, so that everything can lean on them"},
	"stat":  {pure: true, why: "small statistics lean on nothing, so that everything can lean on them"},

	"api":        {pure: true, may: "@nouns kv", why: "the bytes of a prompt become a block chain while they are scanned"},
	"token":      {pure: true, may: "@nouns"},
	"token/chat": {pure: true, may: "@nouns", why: "a conversation becomes text by a model's own files, whatever becomes of the text"},
	"catalog":    {pure: true, may: "@nouns", libs: "sigs.k8s.io/yaml", why: "data sheets and shapes are facts, known before anything is believed or simulated"},
	"perf":       {pure: true, may: "@nouns catalog"},
	"kv":         {pure: true, may: "@nouns", libs: "github.com/cespare/xxhash/v2"},
	"health":     {pure: true, may: "@nouns"},
	"tenant":     {pure: true, may: "@nouns"},
	"exchange":   {pure: true, may: "@nouns", why: "gateway and simulator judge pairs and charge links with the same code; who speaks with engines is transfer"},
	"journal":    {pure: true, may: "@nouns", why: "the journal is bytes; what they mean belongs to who writes them"},
	"workload":   {pure: true, may: "@nouns", libs: "sigs.k8s.io/yaml", why: "requests are made without knowing who will serve them"},

	"route": {pure: true, may: "@nouns @facts", why: "where and when are told apart: only pool knows both"},
	"flow":  {pure: true, may: "@nouns @facts", why: "where and when are told apart: only pool knows both"},
	"group": {pure: true, may: "@nouns @facts"},

	"scenario":  {pure: true, may: "@nouns @facts pool", why: "a scenario asks the brain; it decides nothing itself"},
	"pool":      {pure: true, may: "@nouns @facts @rules", why: "pool composes the deciders; how many is not its question"},
	"scale":     {pure: true, may: "@nouns perf", why: "the planner sees demand and capacity, never one request"},
	"enginesim": {pure: true, may: "@nouns catalog kv", why: "an engine's truth must not be computed by the belief that is tested against it"},

	"live":          {may: "@pure", why: "a brain with a lock and a clock, and nothing else"},
	"engine":        {may: "@pure"},
	"engine/kvfeed": {may: "@pure"},
	"engine/tokens": {may: "@pure engine token/chat", why: "which tokens a prompt becomes is asked of engines, and told to whoever names blocks"},
	"gateway":       {may: "@pure engine engine/tokens live", why: "the front must not know whether engines are simulated"},
	"epp":           {may: "@pure engine live", why: "the front must not know whether engines are simulated"},
	"control":       {may: "@pure engine engine/kvfeed live"},
	"keep":          {may: "@pure gateway engine live", why: "what is kept cached is sent again as the front put it to the engines"},
	"batch":         {may: "@pure gateway live"},
	"transfer":      {may: "@pure"},
	"discovery":     {may: "@pure engine", why: "to find an endpoint is to ask a server what it serves"},
	"local":         {may: "@pure"},
	"kube":          {may: "@pure"},
	"cluster":       {may: "@pure"},
	"usage":         {may: "@pure"},
	"doctor":        {may: "@pure"},
	"tui":           {may: "@pure"},
	"config":        {may: "@pure scenario gateway engine engine/kvfeed", why: "configuration is read into the plain values of those who use them"},
	"obs":           {may: "@pure gateway live", why: "signals are made of what the front and the brain report"},
	"admin":         {may: "@pure live obs", why: "the simulated lab reaches the page as a function, not as an import"},

	"enginesim/server": {may: "@nouns enginesim catalog kv engine/kvfeed", why: "its wire code is its own, so that one misreading cannot hide on both sides; but for KV events, which tests of kv and kvfeed hold to recorded bytes"},
	"sim":              {may: "@pure enginesim", why: "the simulator drives brains itself; shells run on the wall clock"},
	"lab":              {may: "@pure enginesim sim", why: "experiments are cells of the simulator; they serve nobody"},
	"bench":            {may: "@nouns workload", why: "a load generator that read answers with the gateway's code would share its mistakes"},
	"profile":          {may: "@pure engine", why: "it asks a server in the gateway's words and times it in its own: figures of bench must not be checked by themselves"},

	"app":      {may: "*", why: "the composition root knows everything"},
	"archtest": {why: "it reads source, it runs none"},
}

// expand turns a may column into a set of rooms.
func expand(may string) map[string]bool {
	set := map[string]bool{}
	for name := range strings.FieldsSeq(may) {
		if strings.HasPrefix(name, "@") {
			for member := range expand(groups[name]) {
				set[member] = true
			}
			continue
		}
		set[name] = true
	}
	return set
}
