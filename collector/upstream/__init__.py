"""The Productiv Developer API: types, wire format, token, transport, delivery."""
