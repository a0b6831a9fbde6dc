// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/service"
)

// Options are what `docker network create --opt` can say about a network, validated.
type Options struct {
	Mode   string `json:"mode"`             // one of the Mode constants
	Bridge string `json:"bridge,omitempty"` // name of the bridge; "" for one of ours
	Parent string `json:"parent,omitempty"` // of slaves; "" for a private one

	MacvlanMode string `json:"macvlan_mode,omitempty"` // bridge, private, vepa or passthru
	IPvlanMode  string `json:"ipvlan_mode,omitempty"`  // l2, l3 or l3s
	IPvlanFlag  string `json:"ipvlan_flag,omitempty"`  // bridge, private or vepa

	EBPF string `json:"ebpf,omitempty"` // on or off: nftables instead; "" for on
	LB   string `json:"lb"`             // auto, socket or packet
	VIP  bool   `json:"vip"`            // names become services
	MTU  int    `json:"mtu,omitempty"`  // bytes; 0 for the uplink's

	Publish      string         `json:"publish,omitempty"`         // one of the Publish constants
	Sources      []netip.Prefix `json:"publish_sources,omitempty"` // that reach published ports; nil for everybody
	HostBinding  netip.Addr     `json:"host_binding,omitzero"`     // of ports published without one; the zero Addr for all
	GatewayMode4 string         `json:"gateway_mode4,omitempty"`   // one of the Gateway constants, "" for nat
	GatewayMode6 string         `json:"gateway_mode6,omitempty"`
	NoMasquerade bool           `json:"no_masquerade,omitempty"` // what leaves keeps its source
}

// Who publishes ports and leads out.
const (
	PublishEBPF     = "ebpf"     // our programs on the uplinks
	PublishGWBridge = "gwbridge" // the engine, through a second leg in docker_gwbridge
	PublishOff      = "off"      // nobody publishes; our programs lead out
)

// What leaves by the gateway, and what comes from outside (Docker's bridge driver, "gateway modes").
const (
	GatewayNAT    = "nat"             // masqueraded; published ports are the host's
	GatewayOpen   = "nat-unprotected" // the same, and every port of a container is reached at its own address
	GatewayRouted = "routed"          // as it is; published ports are reached at the container's own address
	// GatewayIsolated, of internal networks, keeps containers and the host from each other.
	GatewayIsolated = "isolated"
)

// How endpoints of a network are connected.
const (
	ModeVeth    = "veth"    // each routed on its own
	ModeBridge  = "bridge"  // ports of one bridge
	ModeMacvlan = "macvlan" // slaves of one parent, each with a MAC of its own
	ModeIPvlan  = "ipvlan"  // slaves of one parent, with its MAC
	ModeNetkit  = "netkit"  // as veth, with programs that run while a container sends
)

// Where services of a network are translated.
const (
	LBAuto   = "auto"   // when sockets connect, and per packet for what no hook saw
	LBSocket = "socket" // the same as auto: the per-packet path costs nothing when it has nothing to do
	LBPacket = "packet" // per packet only
)

// minMTU is what IPv6 needs on every link (RFC 8200, 5).
const (
	minMTU = 1280
	maxMTU = 65535
)

// option is one key of --opt: what it may be and where it goes.
type option struct {
	choices []string // nil: set judges the value
	set     func(o *Options, value string) error
}

var options = map[string]option{
	"mode": {[]string{ModeVeth, ModeBridge, ModeMacvlan, ModeIPvlan, ModeNetkit}, func(o *Options, v string) error { o.Mode = v; return nil }},
	"ebpf": {[]string{"on", "off"}, func(o *Options, v string) error { o.EBPF = v; return nil }},
	"lb":   {[]string{LBAuto, LBSocket, LBPacket}, func(o *Options, v string) error { o.LB = v; return nil }},
	"vip":  {[]string{"on", "off"}, func(o *Options, v string) error { o.VIP = v == "on"; return nil }},
	"publish": {[]string{PublishEBPF, PublishGWBridge, PublishOff}, func(o *Options, v string) error {
		o.Publish = v
		return nil
	}},
	"publish_sources": {nil, setSources},
	"com.docker.network.bridge.enable_ip_masquerade": {[]string{"true", "false"}, func(o *Options, v string) error {
		o.NoMasquerade = v == "false"
		return nil
	}},
	"com.docker.network.bridge.host_binding_ipv4": {nil, func(o *Options, v string) error {
		a, err := netip.ParseAddr(v)
		if err != nil || !a.Is4() {
			return errors.New("must be an IPv4 address of the host, such as 127.0.0.1")
		}
		if !a.IsUnspecified() {
			o.HostBinding = a
		}
		return nil
	}},
	"com.docker.network.bridge.gateway_mode_ipv4": {gatewayModes, func(o *Options, v string) error {
		o.GatewayMode4 = v
		return nil
	}},
	"com.docker.network.bridge.gateway_mode_ipv6": {gatewayModes, func(o *Options, v string) error {
		o.GatewayMode6 = v
		return nil
	}},
	"parent": {nil, func(o *Options, v string) error {
		o.Parent = v
		return link.CheckName(v)
	}},
	"macvlan_mode": {[]string{"bridge", "private", "vepa", "passthru"}, func(o *Options, v string) error {
		o.MacvlanMode = v
		return nil
	}},
	"ipvlan_mode": {[]string{"l2", "l3", "l3s"}, func(o *Options, v string) error { o.IPvlanMode = v; return nil }},
	"ipvlan_flag": {[]string{"bridge", "private", "vepa"}, func(o *Options, v string) error {
		o.IPvlanFlag = v
		return nil
	}},
	"com.docker.network.bridge.name": {nil, func(o *Options, v string) error {
		o.Bridge = v
		return link.CheckName(v)
	}},
	"mtu":                           {nil, setMTU},
	"com.docker.network.driver.mtu": {nil, setMTU},
}

var gatewayModes = []string{GatewayNAT, GatewayOpen, GatewayRouted, GatewayIsolated}

func setSources(o *Options, v string) (err error) {
	o.Sources, err = parseSources(v)
	return err
}

func parseSources(v string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for text := range strings.SplitSeq(v, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, errors.New("must be subnets, such as 192.168.1.0/24,2001:db8::/64")
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func setMTU(o *Options, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < minMTU || n > maxMTU {
		return fmt.Errorf("must be a number of bytes from %d to %d", minMTU, maxMTU)
	}
	if o.MTU != 0 && o.MTU != n {
		return fmt.Errorf("contradicts the other MTU option, which says %d: leave one of them away", o.MTU)
	}
	o.MTU = n
	return nil
}

// ParseOptions validates the options of a network. An error names the key, the value and the choices.
func ParseOptions(raw map[string]string) (Options, error) {
	o := Options{Mode: ModeVeth, LB: LBAuto, VIP: true}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		opt, ok := options[key]
		if !ok {
			return o, fmt.Errorf("unknown network option %q: the options are %s",
				key, strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		}
		value := raw[key]
		if opt.choices != nil && !slices.Contains(opt.choices, value) {
			return o, fmt.Errorf("network option %s=%q: choose one of %s", key, value, strings.Join(opt.choices, ", "))
		}
		if err := opt.set(&o, value); err != nil {
			return o, fmt.Errorf("network option %s=%q %w", key, value, err)
		}
	}
	if err := o.checkMode(); err != nil {
		return o, err
	}
	if o.EBPF == "off" && o.LB != LBAuto {
		return o, fmt.Errorf("network option lb=%q contradicts ebpf=%q: without eBPF nftables translates services, leave lb away", o.LB, o.EBPF)
	}
	switch o.Mode {
	case ModeMacvlan:
		o.MacvlanMode = cmp.Or(o.MacvlanMode, "bridge")
	case ModeIPvlan:
		o.IPvlanMode, o.IPvlanFlag = cmp.Or(o.IPvlanMode, "l2"), cmp.Or(o.IPvlanFlag, "bridge")
	}
	return o, o.checkPublish()
}

// checkPublish fills in who publishes, and refuses what means nothing then.
func (o *Options) checkPublish() error {
	if o.Publish == PublishEBPF && o.EBPF == "off" {
		return fmt.Errorf("network option publish=%q contradicts ebpf=%q: leave it away, and docker_gwbridge publishes", o.Publish, o.EBPF)
	}
	if why := o.unpublishable(); why != "" && o.Publish == PublishEBPF {
		return fmt.Errorf("network option publish=%q: %s: leave it away", o.Publish, why)
	}
	o.Publish = cmp.Or(o.Publish, o.publishDefault())
	if o.Publish == PublishEBPF {
		return nil
	}
	for key, given := range map[string]bool{
		"publish_sources": o.Sources != nil,
		"com.docker.network.bridge.host_binding_ipv4": o.HostBinding.IsValid(),
	} {
		if given {
			return fmt.Errorf("network option %s contradicts publish=%q: it goes with publish=%s only", key, o.Publish, PublishEBPF)
		}
	}
	return nil
}

// checkMode refuses options that mean nothing in the network's mode.
func (o *Options) checkMode() error {
	for _, needs := range []struct {
		key, value string
		modes      []string
	}{
		{"com.docker.network.bridge.name", o.Bridge, []string{ModeBridge}},
		{"parent", o.Parent, []string{ModeMacvlan, ModeIPvlan}},
		{"macvlan_mode", o.MacvlanMode, []string{ModeMacvlan}},
		{"ipvlan_mode", o.IPvlanMode, []string{ModeIPvlan}},
		{"ipvlan_flag", o.IPvlanFlag, []string{ModeIPvlan}},
	} {
		if needs.value != "" && !slices.Contains(needs.modes, o.Mode) {
			return fmt.Errorf("network option %s=%q contradicts mode=%q: it goes with mode=%s only",
				needs.key, needs.value, o.Mode, strings.Join(needs.modes, " or "))
		}
	}
	return o.checkIsolated()
}

// checkIsolated refuses gateway modes of devices that the host has no end of, where it cannot tell who sends.
func (o *Options) checkIsolated() error {
	if o.GatewayMode4 != GatewayIsolated && o.GatewayMode6 != GatewayIsolated {
		return nil
	}
	if o.Mode == ModeMacvlan || o.Mode == ModeIPvlan {
		return fmt.Errorf("gateway mode %q contradicts mode=%q: it goes with mode=veth, bridge or netkit only", GatewayIsolated, o.Mode)
	}
	if o.EBPF == "off" {
		return fmt.Errorf("gateway mode %q contradicts ebpf=%q: our programs isolate, leave ebpf away", GatewayIsolated, o.EBPF)
	}
	return nil
}

// endpointOptions are the driver-opts of an endpoint: --network name=n,driver-opt=k=v.
var endpointOptions = []string{
	optionIfName,
	"mustang.service", "mustang.vip", "mustang.health", "mustang.weight", optionSources,
}

// optionIfName is the wanted name of the device inside.
const optionIfName = "com.docker.network.endpoint.ifname"

// optionSources is publish_sources of one endpoint.
const optionSources = "mustang.publish_sources"

func checkEndpointOptions(raw map[string]string) error {
	for key := range raw {
		// sysctls and the like are the engine's own
		if strings.HasPrefix(key, "com.docker.network.endpoint.") || slices.Contains(endpointOptions, key) {
			continue
		}
		return fmt.Errorf("unknown endpoint option %q: the options are %s", key, strings.Join(endpointOptions, ", "))
	}
	if name, ok := raw[optionIfName]; ok {
		if err := link.CheckName(name); err != nil {
			return fmt.Errorf("endpoint option %s=%q %w", optionIfName, name, err)
		}
	}
	if text, ok := raw[optionSources]; ok {
		if _, err := parseSources(text); err != nil {
			return fmt.Errorf("endpoint option %s=%q %w", optionSources, text, err)
		}
	}
	return service.CheckEndpointOptions(raw)
}

// HasOption tells whether networks have an option.
func HasOption(key string) bool { _, ok := options[key]; return ok }

// Modes lists the modes that a network can have.
func Modes() []string { return slices.Clone(options["mode"].choices) }
