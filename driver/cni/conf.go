// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
)

// conf is a plugin's configuration as a runtime hands it over. Every other key is an option of the network.
type conf struct {
	types.PluginConf
	IPAM          ipamConf      `json:"ipam"`
	Internal      bool          `json:"internal"`
	IPv6          bool          `json:"ipv6"`
	RuntimeConfig runtimeConfig `json:"runtimeConfig"`
	Args          struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`

	options  map[string]string
	fromIPAM types.DNS // what the IPAM plugin says, once it has been asked
}

// ours are the keys of a configuration that are no options of the network.
var ours = []string{
	"cniVersion", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "args",
	"cni.dev/valid-attachments", "cni.dev/attachments", "disableCheck", "disableGC", "internal", "ipv6",
}

// The types by which a configuration means us: as a plugin, and as its IPAM, which it need not name.
const (
	pluginType = "mustang"
	ipamType   = "mustang"
)

// Plugins that hand out addresses, of which more need be known than that.
const (
	ipamHostLocal = "host-local"
	ipamDHCP      = "dhcp"
)

type ipamConf struct {
	Type      string        `json:"type"`
	Ranges    [][]rangeConf `json:"ranges"`
	rangeConf               // a single one, as host-local's older form has it
}

// sets are all ranges, as they are written.
func (c ipamConf) sets() [][]rangeConf {
	if c.Subnet == "" {
		return c.Ranges
	}
	return append([][]rangeConf{{c.rangeConf}}, c.Ranges...)
}

// rangeConf is a range as host-local writes it, too.
type rangeConf struct {
	Subnet     string `json:"subnet,omitempty"`
	Range      string `json:"range,omitempty"`
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Gateway    string `json:"gateway,omitempty"`
}

// runtimeConfig are the capabilities that the runtime made use of.
type runtimeConfig struct {
	PortMappings []portMapping   `json:"portMappings"`
	IPs          []string        `json:"ips"`
	MAC          string          `json:"mac"`
	DNS          types.DNS       `json:"dns"`
	IPRanges     [][]rangeConf   `json:"ipRanges"`
	Bandwidth    Limits          `json:"bandwidth"`
	Aliases      json.RawMessage `json:"aliases"` // a list, or lists by network
}

// portMapping is a port to publish. Runtimes disagree about the case of the keys, which decoding does not mind.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// argsConf are what CNI_ARGS may say.
type argsConf struct {
	types.CommonArgs
	IP  types.UnmarshallableString
	MAC types.UnmarshallableString
}

func parseConf(text []byte) (*conf, error) {
	c := &conf{options: map[string]string{}}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read the network configuration", err.Error())
	}
	var all map[string]any
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read the network configuration", err.Error())
	}
	if none, given := all["ipam"].(map[string]any); given && len(none) == 0 {
		return nil, invalidf("\"ipam\": {} asks for no addresses, by which mustang knows its containers: leave \"ipam\" away, and mustang chooses them, " +
			"or say which with \"ranges\"")
	}
	for key, value := range all {
		if slices.Contains(ours, key) {
			continue
		}
		if !driver.HasOption(key) {
			_, err := driver.ParseOptions(map[string]string{key: ""})
			return nil, types.NewError(types.ErrUnsupportedField, fmt.Sprintf("the network configuration has %q: %v", key, value), err.Error())
		}
		text, err := optionText(key, value)
		if err != nil {
			return nil, err
		}
		c.options[key] = text
	}
	return c, nil
}

// optionText is an option's value as the command line takes it.
func optionText(key string, value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case float64:
		return fmt.Sprint(v), nil
	case bool:
		if key == "vip" || key == "ebpf" {
			return map[bool]string{true: "on", false: "off"}[v], nil
		}
		return fmt.Sprint(v), nil
	case []any:
		var parts []string
		for _, one := range v {
			s, ok := one.(string)
			if !ok {
				return "", invalidf("network option %s: want a list of strings", key)
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	}
	return "", invalidf("network option %s=%v: want a string", key, value)
}

// delegated tells whether another plugin hands out the addresses.
func (c *conf) delegated() bool { return c.IPAM.Type != "" && c.IPAM.Type != ipamType }

func (c *conf) network() (Network, error) {
	n := Network{Name: c.Name, Options: c.options, Internal: c.Internal, IPv6: c.IPv6, Delegated: c.delegated()}
	if len(n.Options) == 0 {
		n.Options = nil // as the state keeps it
	}
	if n.Delegated {
		n.Ranges = c.subnets()
		return n, nil
	}
	for _, set := range slices.Concat(c.IPAM.sets(), c.RuntimeConfig.IPRanges) {
		for _, r := range set {
			one, err := r.parse()
			if err != nil {
				return n, err
			}
			if slices.Contains(n.Ranges, one) {
				continue
			}
			if slices.ContainsFunc(n.Ranges, func(had Range) bool { return had.Subnet == one.Subnet }) {
				return n, invalidf("ipam: subnet %s has several ranges: leave one of them, or use \"type\": \"host-local\"", one.Subnet)
			}
			n.Ranges = append(n.Ranges, one)
		}
	}
	return n, nil
}

// subnets are those that host-local takes addresses from, one after another. What it will not understand is its to say.
func (c *conf) subnets() (out []Range) {
	if c.IPAM.Type != ipamHostLocal {
		return nil
	}
	for _, r := range slices.Concat(slices.Concat(c.IPAM.sets(), c.RuntimeConfig.IPRanges)...) {
		subnet, err := netip.ParsePrefix(r.Subnet)
		if err != nil {
			continue
		}
		one := Range{Subnet: subnet.Masked()}
		if gw, err := netip.ParseAddr(r.Gateway); err == nil {
			one.Gateway = gw
		} else {
			one.Gateway = one.Subnet.Addr().Next()
		}
		if !slices.Contains(out, one) {
			out = append(out, one)
		}
	}
	return out
}

func (r rangeConf) parse() (out Range, err error) {
	if out.Subnet, err = netip.ParsePrefix(r.Subnet); err != nil || out.Subnet != out.Subnet.Masked() {
		return out, invalidf("ipam: subnet %q: want a prefix without host bits, such as 10.77.0.0/24", r.Subnet)
	}
	if out.First, err = r.bound(r.RangeStart); err != nil {
		return out, err
	}
	if out.Last, err = r.bound(r.RangeEnd); err != nil {
		return out, err
	}
	if out.First.IsValid() || out.Last.IsValid() {
		out.Gateway = out.Subnet.Addr().Next() // as host-local has it: not the first of the range
	}
	if r.Range != "" {
		if out.Range, err = netip.ParsePrefix(r.Range); err != nil {
			return out, invalidf("ipam: range %q: want a prefix inside of %s", r.Range, r.Subnet)
		}
	}
	if r.Gateway != "" {
		if out.Gateway, err = netip.ParseAddr(r.Gateway); err != nil {
			return out, invalidf("ipam: gateway %q: want an address of %s", r.Gateway, r.Subnet)
		}
	}
	return out, nil
}

// bound reads the first or the last address of a range.
func (r rangeConf) bound(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, invalidf("ipam: subnet %s: %q is no address: give one of it as rangeStart and rangeEnd", r.Subnet, text)
	}
	return a, nil
}

// ask reads what the runtime asks for this container.
func (c *conf) ask(a *Attachment, args string) error {
	var said argsConf
	if err := types.LoadArgs(args, &said); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "read CNI_ARGS", err.Error())
	}
	texts := slices.Concat(c.RuntimeConfig.IPs, c.Args.CNI.IPs)
	if said.IP != "" {
		texts = append(texts, strings.Split(string(said.IP), ",")...)
	}
	for _, text := range texts {
		plain, _, _ := strings.Cut(text, "/")
		ip, err := netip.ParseAddr(plain)
		if err != nil {
			return invalidf("the address %q that is asked for is none: give one such as 10.77.0.5", text)
		}
		if ip = ip.Unmap(); !slices.Contains(a.IPs, ip) {
			a.IPs = append(a.IPs, ip)
		}
	}
	if a.MAC = c.RuntimeConfig.MAC; a.MAC == "" {
		a.MAC = string(said.MAC)
	}
	if a.MAC != "" {
		mac, err := net.ParseMAC(a.MAC)
		if err != nil || len(mac) != 6 {
			return invalidf("the MAC %q that is asked for is none: want six bytes, such as 02:42:ac:11:00:02", a.MAC)
		}
		a.MAC = mac.String()
	}
	a.Limits = c.RuntimeConfig.Bandwidth
	for _, p := range c.RuntimeConfig.PortMappings {
		b, err := p.parse()
		if err != nil {
			return err
		}
		if !c.Internal { // which publishes nothing, as with an engine: of two networks the other does
			a.Ports = append(a.Ports, b)
		}
	}
	return c.aliases(a)
}

func (c *conf) aliases(a *Attachment) error {
	raw := c.RuntimeConfig.Aliases
	if len(raw) == 0 {
		return nil
	}
	if json.Unmarshal(raw, &a.Aliases) == nil {
		return nil
	}
	var byNetwork map[string][]string
	if err := json.Unmarshal(raw, &byNetwork); err != nil {
		return invalidf("runtimeConfig: aliases %s: want a list of names", raw)
	}
	a.Aliases = byNetwork[c.Name]
	return nil
}

func (p portMapping) parse() (driver.PortBinding, error) {
	b := driver.PortBinding{Port: uint16(p.ContainerPort), HostPort: uint16(p.HostPort), HostPortEnd: uint16(p.HostPort)}
	what := fmt.Sprintf("publish the port %d as %d/%s", p.ContainerPort, p.HostPort, strings.ToLower(p.Protocol))
	switch strings.ToLower(p.Protocol) {
	case "tcp", "":
		b.Protocol = bpf.ProtocolTCP
	case "udp":
		b.Protocol = bpf.ProtocolUDP
	default:
		return b, invalidf("%s: mustang publishes TCP and UDP only", what)
	}
	for _, port := range []int{p.HostPort, p.ContainerPort} {
		if port < 1 || port > 65535 {
			return b, invalidf("%s: %d is no port, choose 1 to 65535", what, port)
		}
	}
	if p.HostIP == "" {
		return b, nil
	}
	addr, err := netip.ParseAddr(p.HostIP)
	if err != nil || addr.IsMulticast() || addr.Zone() != "" {
		return b, invalidf("%s: the host address %q is none: give one of the host's, such as 127.0.0.1", what, p.HostIP)
	}
	if b.Host = addr.Unmap(); b.Host == netip.IPv4Unspecified() {
		b.Host = netip.Addr{} // what runtimes say that were given none
	}
	return b, nil
}

// lenient reads a configuration as far as it can be read.
func lenient(args *skel.CmdArgs) *conf {
	c := &conf{}
	err := json.Unmarshal(args.StdinData, c)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return c // all but that one value
	}
	if err != nil { // the name is there, as skel has seen
		var some struct {
			Name string `json:"name"`
		}
		_ = json.Unmarshal(args.StdinData, &some)
		c = &conf{PluginConf: types.PluginConf{Name: some.Name}}
	}
	return c
}
