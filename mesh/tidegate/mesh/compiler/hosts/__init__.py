"""Which hosts there are, with their endpoints, and which DestinationRules hold for them."""
