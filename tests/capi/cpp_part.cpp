// The part of cpp.cpp that is another translation unit: the header can be in both, and errors of one are caught in the
// other.
#include <longgen.hpp>
#include <longgen.hpp>

std::string error_of_another_unit(const longgen::Model &model);

std::string error_of_another_unit(const longgen::Model &model)
{
    try {
        model.token_bytes(LG_TOKEN_NONE);
    } catch (const longgen::Error &error) {
        return error.where();
    }
    return "";
}
