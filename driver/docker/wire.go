// SPDX-License-Identifier: Apache-2.0

package docker

import "encoding/json"

// The types of this file are the messages of the engine's remote driver protocols, written after
// moby's documentation of them: docs/remote.md and docs/ipam.md of libnetwork, and for GwAllocCheck
// (engine 28 and later) the comments of its drivers/remote/api. Addresses are strings in CIDR form
// unless a field says otherwise. Fields that mustang does not read are left out.

// options are values whose type depends on the key.
type options map[string]json.RawMessage

// activateResponse answers Plugin.Activate (docs/remote.md, "Handshake").
type activateResponse struct {
	Implements []string
}

// emptyResponse is the success of a method that has nothing to tell.
type emptyResponse struct{}

// capabilitiesResponse answers NetworkDriver.GetCapabilities (docs/remote.md, "Set capability").
type capabilitiesResponse struct {
	Scope             string // local or global
	ConnectivityScope string // local or global
	GwAllocChecker    bool   // GwAllocCheck is implemented (engine 28 and later)
}

// gwAllocCheckRequest comes before IPAM is asked for a network's gateway; Options are CreateNetwork's.
type gwAllocCheckRequest struct {
	Options options
}

// gwAllocCheckResponse says which gateway addresses the network can do without.
type gwAllocCheckResponse struct {
	SkipIPv4 bool
	SkipIPv6 bool
}

// createNetworkRequest asks for a network (docs/remote.md, "Create network"). Neither its name nor
// its labels are told.
type createNetworkRequest struct {
	NetworkID string
	Options   options
	IPv4Data  []ipamData
	IPv6Data  []ipamData
}

// ipamData is one subnet of a network.
type ipamData struct {
	AddressSpace string
	Pool         string
	Gateway      string
	AuxAddresses map[string]string
}

// networkRequest names a network: DeleteNetwork, FreeNetwork, AllocateNetwork.
type networkRequest struct {
	NetworkID string
}

// createEndpointRequest asks for an endpoint (docs/remote.md, "Create endpoint").
type createEndpointRequest struct {
	NetworkID  string
	EndpointID string
	Interface  *endpointInterface
	Options    options
}

// endpointInterface is an endpoint's addresses, as given or as chosen.
type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// createEndpointResponse tells what the driver chose. The engine refuses any field that it had sent
// non-empty itself.
type createEndpointResponse struct {
	Interface *endpointInterface `json:",omitempty"`
}

// endpointRequest names an endpoint: EndpointOperInfo, DeleteEndpoint, Leave and
// RevokeExternalConnectivity.
type endpointRequest struct {
	NetworkID  string
	EndpointID string
}

// endpointInfoResponse answers EndpointOperInfo.
type endpointInfoResponse struct {
	Value map[string]any
}

// joinRequest puts an endpoint into a sandbox (docs/remote.md, "Join"). Its options are port lists
// only, so that the endpoint's driver-opts have to be kept from CreateEndpoint.
type joinRequest struct {
	NetworkID  string
	EndpointID string
	SandboxKey string
}

// joinResponse tells the engine what to move into the sandbox. Gateways are addresses without length.
type joinResponse struct {
	InterfaceName         interfaceName
	Gateway               string
	GatewayIPv6           string
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool          `json:",omitempty"`
}

// interfaceName is the device's name now and its name, or its prefix that the engine numbers, inside.
type interfaceName struct {
	SrcName   string
	DstPrefix string
	DstName   string `json:",omitempty"`
}

// The RouteTypes: of a destination behind a router, and of one on-link.
const (
	routeNextHop   = 0
	routeConnected = 1
)

// staticRoute is a route besides the endpoint's own subnet.
type staticRoute struct {
	Destination string
	RouteType   int
	NextHop     string // empty for routeConnected
}

// externalRequest programs the published ports of the endpoint that is its container's gateway.
type externalRequest struct {
	NetworkID  string
	EndpointID string
	Options    options
}

// portBinding is one entry of com.docker.network.portmap, as far as mustang reads it. HostPort 0 asks for any.
type portBinding struct {
	Proto       uint8 // number of the IP protocol
	Port        uint16
	HostIP      string
	HostPort    uint16 // the first of those that will do
	HostPortEnd uint16 // the last
}

// protoSCTP is what the engine would publish, too.
const protoSCTP = 132

// discoverRequest tells of other nodes, which a local driver has no use for.
type discoverRequest struct{}

// ipamCapabilitiesResponse answers IpamDriver.GetCapabilities (docs/ipam.md, "GetCapabilities").
type ipamCapabilitiesResponse struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

// addressSpacesResponse answers GetDefaultAddressSpaces (docs/ipam.md).
type addressSpacesResponse struct {
	LocalDefaultAddressSpace  string
	GlobalDefaultAddressSpace string
}

// requestPoolRequest asks for a pool (docs/ipam.md, "RequestPool"). An empty Pool asks for any;
// SubPool narrows where addresses are taken from.
type requestPoolRequest struct {
	AddressSpace string
	Pool         string
	SubPool      string
	Options      map[string]string
	V6           bool
}

// requestPoolResponse gives the pool and the id by which it is named from now on.
type requestPoolResponse struct {
	PoolID string
	Pool   string
	Data   map[string]string
}

// releasePoolRequest gives a pool back (docs/ipam.md, "ReleasePool").
type releasePoolRequest struct {
	PoolID string
}

// requestAddressRequest asks for an address (docs/ipam.md, "RequestAddress"), written without
// length; empty asks for any.
type requestAddressRequest struct {
	PoolID  string
	Address string
	Options map[string]string
}

// requestAddressResponse gives the address with its pool's length.
type requestAddressResponse struct {
	Address string
	Data    map[string]string
}

// releaseAddressRequest gives an address, written without length, back (docs/ipam.md).
type releaseAddressRequest struct {
	PoolID  string
	Address string
}
