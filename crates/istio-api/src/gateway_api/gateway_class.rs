//! Gateway API's GatewayClass.

use crate::schema::messages;

messages! {
    /// `GatewayClassSpec`
    GatewayClassSpec = "GatewayClassSpec" {
        controller_name: String,
        parameters_ref: Option<ParametersReference>,
        description: String,
    }

    /// `ParametersReference`
    ParametersReference = "ParametersReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
    }
}
