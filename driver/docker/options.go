// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
)

// The engine's own option keys.
const (
	keyPrefix     = "com.docker.network."
	keyGeneric    = "com.docker.network.generic" // the map of `--opt`
	keyInternal   = "com.docker.network.internal"
	keyEnableIPv4 = "com.docker.network.enable_ipv4"
	keyEnableIPv6 = "com.docker.network.enable_ipv6"
	keyPortMap    = "com.docker.network.portmap"
	// keyOnly4 says that another endpoint is the container's gateway for IPv6 (engine 29).
	keyOnly4    = "com.docker.network.driver.private.no_proxy_6to4"
	keyExposed  = "com.docker.network.endpoint.exposedports"
	keyMAC      = "com.docker.network.endpoint.macaddress" // the bytes of Interface.MacAddress once more
	keySysctls  = "com.docker.network.endpoint.sysctls"    // set by the engine itself
	keyOwner    = "com.docker.network.endpoint.name"
	keyAddrType = "RequestAddressType"
	addrGateway = "com.docker.network.gateway"
)

// networkOptions are the engine's options of a network, read.
type networkOptions struct {
	generic  map[string]string
	internal bool
	ipv4     bool
	ipv6     bool
	unknown  []string // keys of the engine that mustang does not know
}

// parseNetworkOptions takes unknown keys of the engine itself as no error: they are not the user's,
// and a newer engine's flag would break every network. The user's own are in generic.
func parseNetworkOptions(o options, v4, v6 bool) (networkOptions, error) {
	// Engines before 28 send no enable_ipv4, and enable_ipv6 only when it is on.
	n := networkOptions{ipv4: v4, ipv6: v6}
	for _, key := range slices.Sorted(maps.Keys(o)) {
		var err error
		switch key {
		case keyGeneric:
			n.generic, err = stringMap(key, o[key])
		case keyInternal:
			n.internal, err = boolean(key, o[key])
		case keyEnableIPv4:
			n.ipv4, err = boolean(key, o[key])
		case keyEnableIPv6:
			n.ipv6, err = boolean(key, o[key])
		default:
			n.unknown = append(n.unknown, key)
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// checkFamilies finds what the flags and the subnets say differently.
func (n networkOptions) checkFamilies(v4, v6 bool) error {
	switch {
	case n.ipv4 && !v4:
		return fmt.Errorf("option %s=true, but no IPv4 subnet came: give one with --subnet", keyEnableIPv4)
	case n.ipv6 && !v6:
		return fmt.Errorf("option %s=true, but no IPv6 subnet came: give one with --subnet", keyEnableIPv6)
	case !n.ipv4 && v4:
		return fmt.Errorf("option %s=false, but an IPv4 subnet came: leave one of them away", keyEnableIPv4)
	case !n.ipv6 && v6:
		return fmt.Errorf("option %s=false, but an IPv6 subnet came: leave one of them away", keyEnableIPv6)
	case !v4 && !v6:
		return fmt.Errorf("the network has no subnet: mustang needs IPv4 or IPv6 from an IPAM driver")
	}
	return nil
}

func boolean(key string, raw json.RawMessage) (bool, error) {
	switch string(raw) {
	case "true", `"true"`:
		return true, nil
	case "false", `"false"`:
		return false, nil
	}
	return false, fmt.Errorf("option %s=%s: want true or false", key, raw)
}

func text(key string, raw json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fmt.Errorf("option %s=%s: want a string", key, raw)
	}
	return *s, nil
}

func stringMap(key string, raw json.RawMessage) (map[string]string, error) {
	var values options
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("option %s=%s: want a map of strings", key, raw)
	}
	out := make(map[string]string, len(values))
	for k, v := range values {
		s, err := text(k, v)
		if err != nil {
			return nil, err
		}
		out[k] = s
	}
	return out, nil
}

// endpointOptions leaves of the flat keys of CreateEndpoint only the user's driver-opts.
func endpointOptions(o options) (map[string]string, error) {
	out := make(map[string]string)
	for key, raw := range o {
		switch key {
		case keyPortMap, keyExposed, keyMAC, keySysctls, keyOnly4:
			continue
		}
		s, err := text(key, raw)
		switch {
		case err == nil:
			out[key] = s
		case strings.HasPrefix(key, keyPrefix):
			// A driver-opt is always a string, so this is the engine's own and news to us.
		default:
			return nil, err
		}
	}
	return out, nil
}

// disablesIPv6 tells whether the engine will turn IPv6 off on the interface, by a driver-opt. It then has its IPAM give
// the address to the next endpoint, and fails to set routes of IPv6.
func disablesIPv6(o options) (off bool) {
	list, err := text(keySysctls, o[keySysctls])
	if err != nil { // there is none
		return false
	}
	for setting := range strings.SplitSeq(list, ",") {
		key, value, _ := strings.Cut(setting, "=")
		if strings.EqualFold(key, "net.ipv6.conf.IFNAME.disable_ipv6") { // docker's command line writes it small
			off = value != "0"
		}
	}
	return off
}

// portMap reads what -p asked for. A range of host ports for as many of the container's comes as single entries.
func portMap(o options) ([]driver.PortBinding, error) {
	raw, ok := o[keyPortMap]
	if !ok {
		return nil, nil
	}
	var entries []portBinding
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("option %s: want a list of port bindings: %w", keyPortMap, err)
	}
	only4 := string(o[keyOnly4]) == "true"
	ports := make([]driver.PortBinding, 0, len(entries))
	for _, e := range entries {
		port, err := e.parse()
		if err != nil {
			return nil, err
		}
		port.IPv4Only = only4
		ports = append(ports, port)
	}
	return ports, nil
}

func (b portBinding) parse() (driver.PortBinding, error) {
	p := driver.PortBinding{Protocol: bpf.Protocol(b.Proto), Port: b.Port, HostPort: b.HostPort, HostPortEnd: max(b.HostPort, b.HostPortEnd)}
	switch {
	case b.Proto == protoSCTP:
		return p, fmt.Errorf("publish port %d/sctp: mustang publishes TCP and UDP only", b.Port)
	case p.Protocol != bpf.ProtocolTCP && p.Protocol != bpf.ProtocolUDP:
		return p, fmt.Errorf("publish port %d of protocol number %d: mustang publishes TCP and UDP only", b.Port, b.Proto)
	case b.Port == 0:
		return p, fmt.Errorf("publish a port of the container: %d/%s is none, choose 1 to 65535", b.Port, strings.ToLower(p.Protocol.String()))
	case b.HostPortEnd != 0 && (b.HostPort == 0 || b.HostPortEnd < b.HostPort): // engines may leave the end away
		return p, fmt.Errorf("publish port %d: the host ports %d-%d are no range: give the lower one first", b.Port, b.HostPort, b.HostPortEnd)
	case b.HostIP == "":
		return p, nil
	}
	addr, err := netip.ParseAddr(b.HostIP)
	if err != nil || addr.IsMulticast() || addr.Zone() != "" {
		return p, fmt.Errorf("publish port %d: the host address %q is none: give one of the host's, such as 127.0.0.1", b.Port, b.HostIP)
	}
	p.Host = addr.Unmap()
	return p, nil
}

func parseSubnets(field string, data []ipamData, v6 bool) ([]driver.Subnet, error) {
	var out []driver.Subnet
	for i, d := range data {
		s, err := parseSubnet(fmt.Sprintf("%s[%d]", field, i), d, v6)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func parseSubnet(field string, d ipamData, v6 bool) (driver.Subnet, error) {
	pool, err := prefix(field+".Pool", d.Pool, v6)
	if err != nil {
		return driver.Subnet{}, err
	}
	if pool.Bits() == 0 {
		return driver.Subnet{}, fmt.Errorf("%s.Pool %q is everything: mustang needs an IPAM driver that gives subnets, not `null`", field, d.Pool)
	}
	if pool != pool.Masked() {
		return driver.Subnet{}, fmt.Errorf("%s.Pool %q has host bits: want %s", field, d.Pool, pool.Masked())
	}
	s := driver.Subnet{Pool: pool}
	if d.Gateway != "" {
		gw, err := inPool(field+".Gateway", d.Gateway, pool)
		if err != nil {
			return driver.Subnet{}, err
		}
		s.Gateway = netip.PrefixFrom(gw, pool.Bits())
	}
	for name, a := range d.AuxAddresses {
		addr, err := inPool(fmt.Sprintf("%s.AuxAddresses[%s]", field, name), a, pool)
		if err != nil {
			return driver.Subnet{}, err
		}
		if s.Aux == nil {
			s.Aux = make(map[string]netip.Addr)
		}
		s.Aux[name] = addr
	}
	return s, nil
}

func inPool(field, value string, pool netip.Prefix) (netip.Addr, error) {
	p, err := prefix(field, value, pool.Addr().Is6())
	if err != nil {
		return netip.Addr{}, err
	}
	if !pool.Contains(p.Addr()) {
		return netip.Addr{}, fmt.Errorf("%s %q is outside of the subnet %s: choose an address in it", field, value, pool)
	}
	return p.Addr(), nil
}

// prefix reads an address with its length of the family that the field is for.
func prefix(field, value string, v6 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s %q: want an address with a length, such as 10.0.0.0/24", field, value)
	}
	if p.Addr().Is4In6() || p.Addr().Is6() != v6 {
		return netip.Prefix{}, fmt.Errorf("%s %q is of the wrong address family: give each family its own", field, value)
	}
	return p, nil
}

func macAddress(value string) (string, error) {
	mac, err := net.ParseMAC(value)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("Interface.MacAddress %q: want six bytes, such as 02:42:ac:11:00:02", value)
	}
	return mac.String(), nil
}

// required refuses a message that lacks what every message of its kind has.
func required(fields ...string) error {
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == "" {
			return fmt.Errorf("the call has no %s", fields[i])
		}
	}
	return nil
}
